package benchmarks_test

import (
	"context"

	"keyhold.example/keyhold"
)

func appendSeal(m *keyhold.Manager) func(context.Context, []byte, keyhold.Ref, []byte, keyhold.AAD) ([]byte, error) {
	if a, ok := any(m).(interface {
		AppendSeal(ctx context.Context, dst []byte, ref keyhold.Ref, plaintext []byte, aad keyhold.AAD) ([]byte, error)
	}); ok {
		return a.AppendSeal
	}
	return func(ctx context.Context, _ []byte, r keyhold.Ref, p []byte, a keyhold.AAD) ([]byte, error) {
		return m.Seal(ctx, r, p, a)
	}
}

func appendOpen(m *keyhold.Manager) func(context.Context, []byte, keyhold.Ref, []byte, keyhold.AAD) ([]byte, error) {
	if a, ok := any(m).(interface {
		AppendOpen(ctx context.Context, dst []byte, ref keyhold.Ref, ciphertext []byte, aad keyhold.AAD) ([]byte, error)
	}); ok {
		return a.AppendOpen
	}
	return func(ctx context.Context, _ []byte, r keyhold.Ref, p []byte, a keyhold.AAD) ([]byte, error) {
		return m.Open(ctx, r, p, a)
	}
}
