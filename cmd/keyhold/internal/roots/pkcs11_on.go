//go:build pkcs11

package roots

import (
	"context"
	"errors"

	"keyhold.example/keyhold/cmd/keyhold/internal/roots/pkcs11"
)

func pkcs11Provider() provider {
	return provider{form: pkcs11Form, settings: pkcs11Settings(), check: checkPKCS11, open: openPKCS11}
}

func openPKCS11(ctx context.Context, a address) (vendor, error) {
	p, _ := pkcs11PlaceOf(a)
	place := pkcs11.Place{
		Module: a.settings["module-path"], Token: p.token, Serial: p.serial, Object: p.object, ID: p.id, PIN: a.settings["pin-source"],
	}
	var w *pkcs11.Wrapper
	err := setUp(ctx, explainPKCS11, lookAtKey, func() (err error) {
		w, err = pkcs11.Open(ctx, place)
		if err == nil && ctx.Err() != nil {
			return errors.Join(ctx.Err(), w.Close()) // nobody waits for it any more
		}
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	keyID, err := w.KeyId(ctx)
	if err != nil {
		return vendor{}, err
	}
	return vendor{
		wrapper: w, keyID: keyID, explain: explainPKCS11,
		sealed: func(id string) bool { return id == keyID },
		close:  func(context.Context) error { return w.Close() },
	}, nil
}

func explainPKCS11(operation string, err error) error {
	kind := ErrUnreachable
	for _, known := range []struct{ is, kind error }{
		{pkcs11.ErrPIN, ErrCredentials},
		{pkcs11.ErrNoKey, ErrNoKey},
		{pkcs11.ErrRefused, ErrRefused},
		{pkcs11.ErrOpen, ErrNotItsKey},
	} {
		if errors.Is(err, known.is) {
			kind = known.kind
		}
	}
	return problem(kind, operation+" in the token: "+firstLine(err.Error()))
}
