package roots

import (
	"context"
	"errors"
	"fmt"
)

// lookAtKey is what a wrapper does when it is opened.
const lookAtKey = "look at the key"

var errPanicked = errors.New("the library panicked")

// call calls a vendor's wrapper, and returns when ctx ends. Where the wrapper goes on all the same, it is left to
// itself, and what it returns then is dropped.
func call[T any](ctx context.Context, v *vendor, operation string, f func(context.Context) (T, error), drop func(T)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, ended(ctx, operation)
	}
	end := func() {}
	if v.begin != nil {
		var err error
		if end, err = v.begin(ctx); err != nil {
			return zero, ended(ctx, operation)
		}
	}
	its := ctx
	if v.detached {
		its = context.WithoutCancel(ctx)
	}
	result, err := within(ctx, func() (T, error) {
		defer end()
		return f(its)
	}, drop)
	switch {
	case err == nil:
		return result, nil
	case ctx.Err() != nil:
		return zero, ended(ctx, operation)
	}
	return zero, explained(v.explain, operation, err)
}

// oneByOne is a [vendor.begin] for a library that several goroutines may not call at once. Who is called waits until
// the call before has ended, also one that nobody waits for any more.
func oneByOne() func(context.Context) (func(), error) {
	turn := make(chan struct{}, 1)
	return func(ctx context.Context) (func(), error) {
		select {
		case turn <- struct{}{}:
			return func() { <-turn }, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// setUp has a wrapper made ready for use, which is where most of them call their vendor for the first time.
func setUp(ctx context.Context, explain func(string, error) error, operation string, f func() error) error {
	if ctx.Err() != nil {
		return ended(ctx, operation)
	}
	_, err := within(ctx, func() (struct{}, error) { return struct{}{}, f() }, func(struct{}) {})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ended(ctx, operation)
	}
	return explained(explain, operation, err)
}

func explained(explain func(string, error) error, operation string, err error) error {
	if _, done := err.(*problemError); done || explain == nil { //nolint:errorlint // what is wrapped is not yet a sentence
		return err
	}
	if operation == "decrypt" && contains(err.Error(), "message authentication failed") {
		return problem(ErrNotItsKey, "decrypt a blob: what the vendor's key opened of it is not its key, or it was changed")
	}
	return explain(operation, err)
}

// ended says that ctx ended before there was an answer.
func ended(ctx context.Context, operation string) error {
	return &problemError{fmt.Sprintf("%s with the root: no answer in time: %v", operation, ctx.Err()), []error{ErrUnreachable, ctx.Err()}}
}

// within runs f, and returns when ctx ends if f does not. A panic of f is an error: some wrappers panic when there is
// no answer, or the answer is damaged.
func within[T any](ctx context.Context, f func() (T, error), drop func(T)) (T, error) {
	var zero T
	type answer struct {
		result T
		err    error
	}
	answered := make(chan answer)
	go func() {
		result, err := caught(f)
		select {
		case answered <- answer{result, err}:
		case <-ctx.Done():
			drop(result)
		}
	}()
	select {
	case a := <-answered:
		return a.result, a.err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

func caught[T any](f func() (T, error)) (result T, err error) {
	defer func() {
		if recover() != nil {
			err = errPanicked
		}
	}()
	return f()
}
