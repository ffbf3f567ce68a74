package roots

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"github.com/hashicorp/vault/api"
)

func transitProvider() provider {
	return provider{
		form:     "transit:[https://HOST[:PORT]/][MOUNT/]KEY[?namespace=NAMESPACE][&token-file=PATH]; MOUNT has to stand behind a HOST",
		settings: []string{"namespace", "token-file"},
		check:    func(a address) bool { _, ok := transitPlaceOf(a); return ok },
		open:     openTransit,
	}
}

func transitWording() wording {
	return wording{
		vendor: "Vault",
		login:  "set VAULT_TOKEN, or add token-file=PATH to the address",
		rights: map[string]string{
			"encrypt": `"update" on MOUNT/encrypt/KEY`, "decrypt": `"update" on MOUNT/decrypt/KEY`, lookAtKey: `"update" on MOUNT/encrypt/KEY`,
		},
	}
}

// transitPlace is where a key is; an empty server is that of the environment.
type transitPlace struct {
	server, namespace, mount, key string

	here bool // whether the address names the server
}

func transitPlaceOf(a address) (transitPlace, bool) {
	p := transitPlace{namespace: a.settings["namespace"], mount: "transit"}
	where := a.place
	if strings.Contains(where, "://") {
		u, ok := httpURL(where)
		if !ok {
			return p, false
		}
		p.server, p.here, where = u.Scheme+"://"+u.Host, true, strings.TrimPrefix(u.Path, "/")
	}
	dir, name := path.Split(where)
	if dir != "" {
		p.mount = strings.TrimSuffix(dir, "/")
	} else if p.server != "" {
		return p, false
	}
	p.key = name
	return p, words(p.mount) && word(p.key) && (p.namespace == "" || words(strings.Trim(p.namespace, "/")))
}

// fromEnv is the value of the first of the variables that has one. OpenBao's own stand behind Vault's, which it reads,
// too.
func fromEnv(names ...string) string {
	for _, name := range names {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	return ""
}

func openTransit(ctx context.Context, a address) (vendor, error) {
	p, _ := transitPlaceOf(a)
	if p.server == "" {
		p.server = fromEnv(api.EnvVaultAddress, "BAO_ADDR")
	}
	if p.namespace == "" {
		p.namespace = fromEnv(api.EnvVaultNamespace, "BAO_NAMESPACE")
	}
	token, err := transitToken(a.settings["token-file"])
	if err != nil {
		return vendor{}, err
	}
	if err := tryTransit(ctx, p, token); err != nil {
		return vendor{}, err
	}
	w := transit.NewWrapper()
	explain := func(operation string, err error) error { return explainTransit("", operation, err) }
	err = setUp(ctx, explain, "encrypt", func() error {
		// What stands in the environment must not replace what stands in the address.
		_, err := w.SetConfig(ctx, wrapping.WithDisallowEnvVars(true), transit.WithAddress(p.server), transit.WithNamespace(p.namespace),
			transit.WithMountPath(p.mount), transit.WithKeyName(p.key), transit.WithToken(token))
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	// The wrapper's own id is the number of the newest version of the key, which two keys can have in common.
	keyID := path.Join(strings.Trim(p.namespace, "/"), p.mount, p.key)
	return vendor{
		wrapper: w, keyID: keyID, explain: explain,
		sealed: func(id string) bool { return id == keyID || transitVersion(id) },
		close:  w.Finalize,
	}, nil
}

// transitVersion says whether a key id is one of the wrapper's own.
func transitVersion(id string) bool {
	number, ok := strings.CutPrefix(id, "v")
	_, err := strconv.ParseUint(number, 10, 32)
	return ok && err == nil
}

// tryTransit makes the call that the wrapper starts with, which does not end with ctx, and repeats itself for minutes:
// so that a server that is away is found out about here, and in time.
func tryTransit(ctx context.Context, p transitPlace, token string) error {
	config := api.DefaultConfig()
	if config.Error != nil {
		return problem(ErrUnsupported, "use Vault: the environment's settings for it (VAULT_...) are not valid: "+firstLine(config.Error.Error()))
	}
	if p.server != "" {
		config.Address = p.server
	}
	config.MaxRetries = 0 // who is away now is away; the wrapper repeats what fails later
	client, err := api.NewClient(config)
	if err != nil {
		return problem(ErrUnsupported, "use Vault: the environment's settings for it (VAULT_...) are not valid")
	}
	client.SetToken(token)
	if p.namespace != "" {
		client.SetNamespace(p.namespace)
	}
	explain := func(operation string, err error) error {
		return explainTransit(p.asked(client.Address()), operation, err)
	}
	return setUp(ctx, explain, "encrypt", func() error {
		_, err := client.Logical().WriteWithContext(ctx, path.Join(p.mount, "encrypt", p.key), map[string]any{"plaintext": "YQ=="})
		return err
	})
}

// asked says which server was asked, where only the environment says it, or nothing does.
func (p transitPlace) asked(server string) string {
	u, err := url.Parse(server)
	switch {
	case p.here || err != nil:
		return ""
	case p.server == "":
		return " at " + u.Scheme + "://" + u.Host + ", which is asked where VAULT_ADDR is not set,"
	}
	return " at " + u.Scheme + "://" + u.Host + ", as VAULT_ADDR or BAO_ADDR says,"
}

// transitToken is the token from a file, from the environment, or from where the vendor's own program leaves it. None
// at all is no error: an agent between here and the server may add one.
func transitToken(file string) (string, error) {
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", problem(ErrCredentials, "read the token for Vault: "+fileReason(err))
		}
		defer clear(b)
		return strings.TrimSpace(string(b)), nil
	}
	if token := fromEnv(api.EnvVaultToken, "BAO_TOKEN"); token != "" {
		return token, nil
	}
	if home, err := os.UserHomeDir(); err == nil {
		if b, err := os.ReadFile(path.Join(home, ".vault-token")); err == nil {
			defer clear(b)
			return strings.TrimSpace(string(b)), nil
		}
	}
	return "", nil
}

func fileReason(err error) string {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		return pathErr.Path + ": " + pathErr.Err.Error()
	}
	return "it cannot be read"
}

// explainTransit goes by the text of an answer, too, since Vault has no codes. at says what was asked, as [wording] has
// it.
func explainTransit(at, operation string, err error) error {
	w := transitWording()
	w.at = at
	answer, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		if problem := w.unreachable(err); problem != nil {
			return problem
		}
		return w.sentence(operation, verdict{ErrUnreachable, "its answer is not one of Vault"})
	}
	said := strings.Join(answer.Errors, " ")
	status := "status " + strconv.Itoa(answer.StatusCode)
	kind := ErrUnreachable
	switch {
	case contains(said, "invalid token", "missing client token", "bad token"):
		kind = ErrCredentials
	case answer.StatusCode == http.StatusForbidden:
		kind = ErrRefused
	case answer.StatusCode == http.StatusNotFound, contains(said, "encryption key not found", "no handler for route"):
		kind = ErrNoKey
	case answer.StatusCode == http.StatusTooManyRequests:
		kind = ErrThrottled
	case contains(said, "disallowed by policy"):
		return problem(ErrDisabled, fmt.Sprintf("%s refused to %s (%s): the key's min_decryption_version is higher than the version that "+
			"sealed this, set it lower there", w.vendor, operation, status))
	case answer.StatusCode == http.StatusBadRequest && operation == "decrypt":
		kind = ErrNotItsKey
	case answer.StatusCode == http.StatusServiceUnavailable && contains(said, "sealed"):
		status = "it is sealed"
	}
	return w.sentence(operation, verdict{kind, status})
}
