package roots

import (
	"net/url"
	"slices"
	"strings"
)

const pkcs11Form = "pkcs11:token=TOKEN;object=KEY?module-path=/PATH/OF/LIBRARY.so&pin-source=file:/PATH (RFC 7512; " +
	"also serial=, id=, and pin-source=env:NAME)"

func pkcs11Settings() []string { return []string{"module-path", "pin-source"} }

// pkcs11Place is what an address says of a key in a token.
type pkcs11Place struct{ token, serial, object, id string }

func pkcs11PlaceOf(a address) (pkcs11Place, bool) {
	var p pkcs11Place
	for part := range strings.SplitSeq(a.place, ";") {
		name, value, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(value)
		into := map[string]*string{"token": &p.token, "serial": &p.serial, "object": &p.object, "id": &p.id}[name]
		if name == "type" && value == "secret-key" {
			continue
		}
		if err != nil || into == nil || *into != "" || value == "" {
			return p, false
		}
		*into = value
	}
	return p, (p.token != "" || p.serial != "") && (p.object != "" || p.id != "")
}

func checkPKCS11(a address) bool {
	_, ok := pkcs11PlaceOf(a)
	kind, where, _ := strings.Cut(a.settings["pin-source"], ":")
	fromFile := strings.HasPrefix(a.settings["pin-source"], "/")
	return ok && strings.HasPrefix(a.settings["module-path"], "/") &&
		(fromFile || where != "" && slices.Contains([]string{"file", "env"}, kind))
}
