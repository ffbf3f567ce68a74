package roots

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/hashicorp/go-kms-wrapping/wrappers/azurekeyvault/v2"
)

func azureProvider() provider {
	return provider{
		form:  "azurekeyvault:https://VAULT.vault.azure.net/keys/KEY, without a version",
		check: func(a address) bool { _, ok := azurePlaceOf(a); return ok },
		open:  openAzure, ownNonces: true,
	}
}

func azureWording() wording {
	return wording{
		vendor: "Azure Key Vault",
		login:  "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, run az login, or run where an identity is assigned",
		rights: map[string]string{
			"encrypt": "the key permission wrapKey", "decrypt": "the key permission unwrapKey", lookAtKey: "the key permission get",
		},
	}
}

type azurePlace struct{ vault, suffix, key string }

// azureSuffixes are Azure's clouds. A token is only for hosts of the one that issued it, so others could not work.
func azureSuffixes() []string {
	return []string{
		"vault.azure.net", "managedhsm.azure.net", "vault.azure.cn", "managedhsm.azure.cn",
		"vault.usgovcloudapi.net", "managedhsm.usgovcloudapi.net",
	}
}

func azurePlaceOf(a address) (azurePlace, bool) {
	u, ok := httpURL(a.place)
	if !ok || u.Scheme != "https" || u.Port() != "" {
		return azurePlace{}, false
	}
	vault, suffix, _ := strings.Cut(u.Host, ".")
	key, ok := strings.CutPrefix(u.Path, "/keys/")
	return azurePlace{vault, suffix, key}, ok && slices.Contains(azureSuffixes(), suffix) && word(vault) && word(key)
}

func openAzure(ctx context.Context, a address) (vendor, error) {
	p, _ := azurePlaceOf(a)
	w := azurekeyvault.NewWrapper()
	err := setUp(ctx, explainAzure, lookAtKey, func() error {
		// The SDK finds its credentials in the environment by itself; the wrapper would find another key there.
		_, err := w.SetConfig(ctx, azurekeyvault.WithDisallowEnvVars(true), azurekeyvault.WithVaultName(p.vault),
			azurekeyvault.WithResource(p.suffix), azurekeyvault.WithKeyName(p.key))
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	// Which version opens a blob stands in the blob, as nothing else says it: the ids are the wrapper's own.
	return vendor{wrapper: w, envelope: true, explain: explainAzure}, nil
}

func explainAzure(operation string, err error) error {
	w := azureWording()
	answer, ok := errors.AsType[*azcore.ResponseError](err)
	_, noLogin := errors.AsType[*azidentity.AuthenticationFailedError](err)
	switch {
	case noLogin || contains(err.Error(), "DefaultAzureCredential", "EnvironmentCredential"):
		return w.sentence(operation, verdict{kind: ErrCredentials})
	case !ok:
		if problem := w.unreachable(err); problem != nil {
			return problem
		}
		return w.sentence(operation, verdict{kind: ErrUnreachable})
	}
	kind := ErrUnreachable
	switch {
	case answer.StatusCode == http.StatusUnauthorized:
		kind = ErrCredentials
	case answer.StatusCode == http.StatusForbidden && contains(answer.Error(), "KeyDisabled", "KeyNotYetValid", "KeyExpired", "disabled key"):
		kind = ErrDisabled
	case answer.StatusCode == http.StatusForbidden:
		kind = ErrRefused
	case answer.StatusCode == http.StatusNotFound:
		kind = ErrNoKey
	case answer.StatusCode == http.StatusTooManyRequests:
		kind = ErrThrottled
	case answer.StatusCode == http.StatusBadRequest && operation == "decrypt":
		kind = ErrNotItsKey
	}
	return w.sentence(operation, verdict{kind, answer.ErrorCode})
}
