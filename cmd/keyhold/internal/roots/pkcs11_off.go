//go:build !pkcs11

package roots

import "context"

// pkcs11Provider refuses: what talks to a token is C, which this program was built without.
func pkcs11Provider() provider {
	return provider{
		form:     pkcs11Form,
		settings: pkcs11Settings(),
		check:    checkPKCS11,
		open: func(context.Context, address) (vendor, error) {
			return vendor{}, problem(ErrUnsupported, "this program was built without PKCS#11; build with -tags pkcs11")
		},
	}
}
