package dekmanager

import (
	"context"
	"errors"
	"time"

	"keyhold.example/keyhold"
)

// start begins what Shutdown ends. Nothing in it can fail.
func (d *DEKManager) start(config *DEKManagerConfig) {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // Shutdown ends it
	d.cancel = cancel
	if d.keys.Health().Root != nil {
		d.isOld()
	}
	d.work.Go(func() { _ = d.keys.Run(ctx) }) // it ends with ctx alone; what fails in it is an event
	if config.periodGiven || config.DEKRotationPeriod != defaultPeriod {
		d.work.Go(func() { d.keepPeriod(ctx, config.DEKRotationPeriod) })
	}
}

func (d *DEKManager) isOld() {
	if !d.old.Swap(true) {
		d.logger.Warn("The database is under a newer MEK. " +
			"This program reads keys, and makes, rotates and removes none, until it is started with that MEK.")
	}
}

// onEvent passes on what somebody should know. That keys are rotated, as they are to be, is no warning; and that there
// is no pin is nothing that this package has an option for.
func (d *DEKManager) onEvent(_ context.Context, e keyhold.Event) {
	switch {
	case e.Kind == keyhold.OldRoot:
		d.isOld()
	case e.Kind == keyhold.NoPin, e.Kind == keyhold.Rotated, e.Kind == keyhold.Rewrapped:
	case errors.Is(e.Err, context.Canceled): // by Shutdown
	default:
		d.logger.Warn("keyhold: "+string(e.Kind), about(e)...)
	}
}

func about(e keyhold.Event) (args []any) {
	if e.Ref.Purpose != "" {
		args = append(args, "key_name", string(e.Ref.Purpose))
	}
	if e.Version != 0 {
		args = append(args, "version", int(e.Version))
	}
	if e.ID != "" {
		args = append(args, "id", string(e.ID))
	}
	if e.Err != nil {
		args = append(args, "error", e.Err)
	}
	return args
}

// periodAgain is when keys are looked at again of which one did not get its period.
const periodAgain = 10 * time.Minute

// keepPeriod gives all keys the configured period.
func (d *DEKManager) keepPeriod(ctx context.Context, every time.Duration) {
	for {
		err := d.setPeriods(ctx, every)
		if err == nil || ctx.Err() != nil {
			return
		}
		d.logger.Warn("Not all keys have the rotation period of this process yet. "+
			"They are looked at again in ten minutes.", "error", err)
		timer := time.NewTimer(periodAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// setPeriods returns what failed first. A key at which something fails holds up no other.
func (d *DEKManager) setPeriods(ctx context.Context, every time.Duration) (failed error) {
	every = (every + time.Second - 1).Truncate(time.Second) // as it is stored
	for info, err := range d.keys.RawKeys(ctx, d.scope) {
		switch {
		case err != nil:
			return err
		case d.old.Load(): // a deployment that is over has no say
			return nil
		case info.Version == 0, info.RotateEvery == every:
			continue
		case info.RotateEvery == 0: // never is what somebody wanted of that key alone
			continue
		}
		err := d.keys.SetPolicy(ctx, d.ref(string(info.Name)), keyhold.Policy{RotateEvery: every})
		switch {
		case err == nil, errors.Is(err, keyhold.ErrNotFound): // it was removed
		case ctx.Err() != nil:
			return err
		case failed == nil:
			failed = err
		}
	}
	return failed
}
