package migrate

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	gomigrate "github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/source/iofs"
)

// Up runs with golang-migrate those of the rendered files that driver's version does not have yet. Where there are none
// it does nothing. How long to wait for other processes is the driver's decision.
func Up(fsys fs.FS, driver database.Driver) error {
	files, err := iofs.New(fsys, ".")
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	m, err := gomigrate.NewWithInstance("iofs", files, "keyhold", driver)
	if err != nil {
		return errors.Join(fmt.Errorf("prepare migrations: %w", err), files.Close())
	}
	m.LockTimeout = time.Duration(math.MaxInt64)
	err = m.Up()
	if errors.Is(err, gomigrate.ErrNoChange) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("run migrations: %w", err)
	}
	sourceErr, driverErr := m.Close()
	return errors.Join(err, sourceErr, driverErr)
}
