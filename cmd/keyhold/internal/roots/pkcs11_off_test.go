//go:build !pkcs11

package roots

import (
	"errors"
	"testing"
)

func TestAProgramWithoutPKCS11SaysHowToGetOne(t *testing.T) {
	_, err := Open(t.Context(), "pkcs11:token=t;object=k?module-path=/l.so&pin-source=env:P")
	const want = "this program was built without PKCS#11; build with -tags pkcs11"
	if !errors.Is(err, ErrUnsupported) || err.Error() != "open root pkcs11:token=t;object=k?module-path=/l.so&pin-source=env:P: "+want {
		t.Error(err)
	}
}
