package roots

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	alierrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/alicloudkms/v2"
)

func aliProvider() provider {
	return provider{
		form:     "alicloudkms:acs:kms:REGION:ACCOUNT:key/ID, or alicloudkms:ID?region=REGION, or alicloudkms:alias/NAME?region=REGION",
		settings: []string{"region"},
		check:    func(a address) bool { _, ok := aliPlaceOf(a); return ok },
		open:     openAli, ownNonces: true,
	}
}

func aliWording() wording {
	return wording{
		vendor: "Alibaba Cloud KMS",
		login: "set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or ALICLOUD_ACCESS_KEY, ALICLOUD_SECRET_KEY " +
			"and ALICLOUD_ACCESS_KEY_STS_TOKEN, or run where a RAM role is assigned",
		rights: map[string]string{"encrypt": "kms:Encrypt on the key", "decrypt": "kms:Decrypt on the key", lookAtKey: "kms:DescribeKey on the key"},
	}
}

type aliPlace struct{ region, key string }

func aliPlaceOf(a address) (aliPlace, bool) {
	p := aliPlace{a.settings["region"], a.place}
	if part := strings.Split(a.place, ":"); len(part) > 1 {
		key, ok := "", false
		if len(part) == 5 {
			key, ok = strings.CutPrefix(part[4], "key/")
		}
		if !ok || part[0] != "acs" || part[1] != "kms" || !word(part[3]) || p.region != "" && p.region != part[2] {
			return p, false
		}
		p = aliPlace{part[2], key}
	}
	return p, words(p.key) && (p.region == "" || word(p.region))
}

func openAli(ctx context.Context, a address) (vendor, error) {
	p, _ := aliPlaceOf(a)
	if p.region == "" {
		p.region = fromEnv("ALICLOUD_REGION", "ALIBABA_CLOUD_REGION_ID")
	}
	switch {
	case p.region == "":
		return vendor{}, problem(ErrAddress, "use Alibaba Cloud KMS: no region is given: add ?region=REGION to the address, or set ALICLOUD_REGION")
	case slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "sdk"):
		return vendor{}, problem(ErrUnsupported, "use Alibaba Cloud KMS: its library prints what it opens while DEBUG has sdk: unset DEBUG")
	}
	w := alicloudkms.NewWrapper()
	err := setUp(ctx, explainAli, lookAtKey, func() error {
		// Without the domain, the SDK would ask another service where the region's KMS is.
		_, err := w.SetConfig(ctx, wrapping.WithDisallowEnvVars(true), wrapping.WithKeyId(p.key), alicloudkms.WithRegion(p.region),
			alicloudkms.WithDomain("kms."+p.region+".aliyuncs.com"), alicloudkms.WithAccessKey(os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_ID")),
			alicloudkms.WithSecretKey(os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET")))
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	keyID, err := w.KeyId(ctx)
	if err != nil || keyID == "" {
		return vendor{}, aliWording().sentence(lookAtKey, verdict{ErrUnreachable, "its answer names no key"})
	}
	return vendor{
		begin:   oneByOne(),
		wrapper: w, keyID: keyID, envelope: true, explain: explainAli,
		sealed: func(id string) bool { return id == keyID },
	}, nil
}

func explainAli(operation string, err error) error {
	w := aliWording()
	answer, ok := errors.AsType[alierrors.Error](err)
	if !ok {
		switch problem := w.unreachable(err); {
		case contains(err.Error(), "100.100.100.200", "security credentials", "role name", "unable to retrieve"):
			return w.sentence(operation, verdict{kind: ErrCredentials})
		case problem != nil:
			return problem
		}
		return w.sentence(operation, verdict{kind: ErrUnreachable})
	}
	code := answer.ErrorCode()
	kind := ErrUnreachable
	switch {
	case contains(code, "AccessKeyId", "Signature", "SecurityToken"):
		kind = ErrCredentials
	case contains(code, "Throttling"):
		kind = ErrThrottled
	case contains(code, "KeyNotFound", "AliasNotFound", "InvalidKeyId"):
		kind = ErrNoKey
	case contains(code, "Rejected.", "Disabled", "KeyState"):
		kind = ErrDisabled
	case operation == "decrypt" && contains(code, "InvalidParameter", "Ciphertext"):
		kind = ErrNotItsKey
	case contains(code, "Forbidden", "NoPermission"):
		kind = ErrRefused
	default:
		if problem := w.unreachable(answer.OriginError()); problem != nil {
			return problem
		}
	}
	return w.sentence(operation, verdict{kind, code})
}
