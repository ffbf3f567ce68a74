package roots

import (
	"context"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/gcpckms/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func gcpProvider() provider {
	return provider{
		form: "gcpckms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY",
		check: func(a address) bool {
			part := strings.Split(a.place, "/")
			return len(part) == 8 && words(strings.ReplaceAll(a.place, ":", "-")) && !strings.Contains(part[7], ":") &&
				part[0] == "projects" && part[2] == "locations" && part[4] == "keyRings" && part[6] == "cryptoKeys"
		},
		open: openGCP, ownNonces: true,
	}
}

func gcpWording() wording {
	return wording{
		vendor: "Google Cloud KMS",
		login:  "set GOOGLE_APPLICATION_CREDENTIALS, run gcloud auth application-default login, or run where a service account is assigned",
		rights: map[string]string{
			"encrypt": "cloudkms.cryptoKeyVersions.useToEncrypt on the key, and the key has to exist",
			"decrypt": "cloudkms.cryptoKeyVersions.useToDecrypt on the key, and the key has to exist",
		},
	}
}

func openGCP(ctx context.Context, a address) (vendor, error) {
	part := strings.Split(a.place, "/")
	w := gcpckms.NewWrapper()
	err := setUp(ctx, explainGCP, lookAtKey, func() error {
		// Looking at the key takes rights that sealing and opening do not, and a call without a context.
		_, err := w.SetConfig(ctx, wrapping.WithDisallowEnvVars(true), gcpckms.WithKeyNotRequired(true), gcpckms.WithProject(part[1]),
			gcpckms.WithRegion(part[3]), gcpckms.WithKeyRing(part[5]), gcpckms.WithCryptoKey(part[7]))
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	return vendor{
		wrapper: w, keyID: a.place, envelope: true, explain: explainGCP,
		sealed: func(id string) bool { return id == a.place || strings.HasPrefix(id, a.place+"/cryptoKeyVersions/") },
		close:  func(context.Context) error { return w.Client().Close() },
	}, nil
}

func explainGCP(operation string, err error) error {
	w := gcpWording()
	said, ok := status.FromError(err)
	if !ok || said.Code() == codes.Unknown {
		switch problem := w.unreachable(err); {
		case problem != nil:
			return problem
		case contains(err.Error(), "credentials", "oauth2", "auth:"):
			return w.sentence(operation, verdict{kind: ErrCredentials})
		}
		return w.sentence(operation, verdict{kind: ErrUnreachable})
	}
	kind := ErrUnreachable
	switch said.Code() { //nolint:exhaustive // the others say nothing about the key
	case codes.Unauthenticated:
		kind = ErrCredentials
	case codes.PermissionDenied:
		kind = ErrRefused
	case codes.NotFound:
		kind = ErrNoKey
	case codes.FailedPrecondition:
		kind = ErrDisabled
	case codes.ResourceExhausted:
		kind = ErrThrottled
	case codes.InvalidArgument:
		if operation == "decrypt" {
			kind = ErrNotItsKey
		}
	}
	return w.sentence(operation, verdict{kind, said.Code().String()})
}
