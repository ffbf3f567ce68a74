package roots

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/ocikms/v2"
	"github.com/oracle/oci-go-sdk/v60/common"
)

func ociProvider() provider {
	return provider{
		form: "ocikms:ocid1.key....?crypto-endpoint=https://NAME-crypto.kms.REGION.oraclecloud.com" +
			"[&management-endpoint=https://...][&auth=api-key|instance]",
		settings: []string{"crypto-endpoint", "management-endpoint", "auth"},
		check:    func(a address) bool { _, ok := ociPlaceOf(a); return ok },
		open:     openOCI, ownNonces: true,
	}
}

func ociWording() wording {
	return wording{
		vendor: "OCI Vault",
		login:  "write ~/.oci/config, or name another such file by OCI_CONFIG_FILE, or run where an instance principal may use the key",
		rights: map[string]string{
			"encrypt": "use keys and read keys in its compartment, and the key has to exist",
			"decrypt": "use keys in its compartment, and the key has to exist",
		},
	}
}

type ociPlace struct {
	key, crypto, management string
	apiKey                  bool
}

func ociPlaceOf(a address) (ociPlace, bool) {
	p := ociPlace{key: a.place, crypto: a.settings["crypto-endpoint"], management: a.settings["management-endpoint"]}
	if p.management == "" {
		p.management = strings.Replace(p.crypto, "-crypto.", "-management.", 1)
	}
	switch a.settings["auth"] {
	case "api-key":
		p.apiKey = true
	case "instance":
	case "":
		p.apiKey = ociConfigured()
	default:
		return p, false
	}
	for _, endpoint := range []string{p.crypto, p.management} {
		if u, ok := httpURL(endpoint); !ok || u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
			return p, false
		}
	}
	return p, strings.HasPrefix(p.key, "ocid1.key.") && word(p.key) && p.crypto != p.management
}

// ociConfigured says whether a user's API key is configured here, as Oracle's own tools look for it.
func ociConfigured() bool {
	if os.Getenv("OCI_CONFIG_FILE") != "" {
		return true
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return false
	}
	for _, dir := range []string{".oci", ".oraclebmc"} {
		if _, err := os.Stat(filepath.Join(home, dir, "config")); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

func openOCI(ctx context.Context, a address) (vendor, error) {
	p, _ := ociPlaceOf(a)
	if level := os.Getenv("OCI_GO_SDK_DEBUG"); level != "" && level != "null" {
		return vendor{}, problem(ErrUnsupported, "use OCI Vault: its library prints what it opens while OCI_GO_SDK_DEBUG is set: unset it")
	}
	w := ocikms.NewWrapper()
	err := setUp(ctx, explainOCI, "encrypt", func() error {
		_, err := w.SetConfig(ctx, wrapping.WithDisallowEnvVars(true), wrapping.WithKeyId(p.key), ocikms.WithCryptoEndpoint(p.crypto),
			ocikms.WithManagementEndpoint(p.management), ocikms.WithAuthTypeApiKey(p.apiKey))
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	return vendor{
		detached: true,
		wrapper:  w, keyID: p.key, envelope: true, explain: explainOCI,
		sealed: func(id string) bool { return id == p.key || strings.HasPrefix(id, "ocid1.keyversion.") },
	}, nil
}

func explainOCI(operation string, err error) error {
	w := ociWording()
	var answer common.ServiceError // does not call itself an error, which AsType asks for
	if !errors.As(err, &answer) {
		switch problem := w.unreachable(err); {
		case contains(err.Error(), "configuration provider", "ConfigurationProvider", "can not read", "did not find a proper configuration"):
			return w.sentence(operation, verdict{kind: ErrCredentials})
		case problem != nil:
			return problem
		}
		// When there is no answer, the wrapper panics in its decision to try again, and the SDK makes an error of that.
		return problem(ErrUnreachable, w.vendor+" cannot be reached, or its answer cannot be read; its library does not say why")
	}
	kind := ErrUnreachable
	switch status := answer.GetHTTPStatusCode(); {
	case status == http.StatusUnauthorized:
		kind = ErrCredentials
	case status == http.StatusTooManyRequests:
		kind = ErrThrottled
	case status == http.StatusConflict:
		kind = ErrDisabled
	case status == http.StatusForbidden, status == http.StatusNotFound:
		kind = ErrRefused // the vendor does not tell these apart
	case status == http.StatusBadRequest && operation == "decrypt":
		kind = ErrNotItsKey
	}
	return w.sentence(operation, verdict{kind, answer.GetCode()})
}
