//go:build !unix

package pgserver

import (
	"context"
	"errors"
)

// errUnix is said where a server cannot be ended reliably with the process that started it.
var errUnix = errors.New("servers are started on Unix only: set KEYHOLD_TEST_POSTGRES to the address of one")

type account struct{}

func unprivileged() (account, error) { return account{}, errUnix }

func (account) folder(string) (string, error) { return "", errUnix }

func (account) write(string, []byte) error { return errUnix }

type guard struct{}

func (account) start(string, string, string, ...string) (*guard, error) { return nil, errUnix }

func (*guard) await(context.Context, func(context.Context) error) error { return errUnix }

func (*guard) end() error { return errUnix }

func exclusively(string, func() error) error { return errUnix }

func (account) own(string) error { return errUnix }
