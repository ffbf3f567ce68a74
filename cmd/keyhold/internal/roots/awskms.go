package roots

import (
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go/aws"         //nolint:staticcheck // the wrapper is made with this version of the SDK
	"github.com/aws/aws-sdk-go/aws/arn"     //nolint:staticcheck // the wrapper is made with this version of the SDK
	"github.com/aws/aws-sdk-go/aws/awserr"  //nolint:staticcheck // the wrapper is made with this version of the SDK
	"github.com/aws/aws-sdk-go/aws/request" //nolint:staticcheck // the wrapper is made with this version of the SDK
	"github.com/aws/aws-sdk-go/service/kms" //nolint:staticcheck // the wrapper is made with this version of the SDK
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
)

func awsProvider() provider {
	return provider{
		form:     "awskms:arn:aws:kms:REGION:ACCOUNT:key/ID, or awskms:alias/NAME?region=REGION, or awskms:ID?region=REGION",
		settings: []string{"region"},
		check:    func(a address) bool { _, ok := awsRegion(a); return ok },
		open:     openAWS, ownNonces: true,
	}
}

func awsWording() wording {
	return wording{
		vendor: "AWS KMS",
		login: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE, " +
			"or run where a role is assigned",
		rights: map[string]string{
			"encrypt": "kms:Encrypt on the key", "decrypt": "kms:Decrypt on the key", lookAtKey: "kms:DescribeKey on the key",
		},
	}
}

// awsRegion is the region that an address has; empty: that of the environment.
func awsRegion(a address) (string, bool) {
	region := a.settings["region"]
	if !strings.HasPrefix(a.place, "arn:") {
		return region, words(a.place) && (region == "" || word(region))
	}
	name, err := arn.Parse(a.place)
	ok := err == nil && name.Service == "kms" && word(name.Region) && word(name.AccountID) && words(name.Resource) &&
		(strings.HasPrefix(name.Resource, "key/") || strings.HasPrefix(name.Resource, "alias/")) &&
		(region == "" || region == name.Region)
	return name.Region, ok
}

func openAWS(ctx context.Context, a address) (vendor, error) {
	region, _ := awsRegion(a)
	if region == "" {
		region = fromEnv("AWS_REGION", "AWS_DEFAULT_REGION")
	}
	if region == "" {
		return vendor{}, problem(ErrAddress, "use AWS KMS: no region is given: add ?region=REGION to the address, or set AWS_REGION")
	}
	w := awskms.NewWrapper()
	err := setUp(ctx, explainAWS, lookAtKey, func() error {
		// What stands in the environment must not replace what stands in the address. The wrapper would look at the key
		// without a context: that is done below.
		_, err := w.SetConfig(ctx, awskms.WithDisallowEnvVars(true), awskms.WithKeyNotRequired(true), wrapping.WithKeyId(a.place),
			awskms.WithRegion(region))
		return err
	})
	if err != nil {
		return vendor{}, err
	}
	client, ok := w.Client().(*kms.KMS)
	if !ok {
		return vendor{}, problem(ErrUnsupported, "use AWS KMS: the wrapper has another client than it had")
	}
	pinned := &awsCalls{turn: make(chan struct{}, 1)}
	client.Handlers.Validate.PushFront(pinned.before)
	client.Handlers.Unmarshal.PushBack(pinned.after)

	v := vendor{wrapper: w, envelope: true, explain: explainAWS, begin: pinned.begin, sealed: pinned.sealed}
	described, err := call(ctx, &v, lookAtKey, func(context.Context) (*kms.DescribeKeyOutput, error) {
		return client.DescribeKey(&kms.DescribeKeyInput{KeyId: new(a.place)})
	}, func(*kms.DescribeKeyOutput) {})
	if err != nil {
		return vendor{}, err
	}
	if described.KeyMetadata != nil {
		v.keyID = aws.StringValue(described.KeyMetadata.Arn)
	}
	if v.keyID == "" {
		return vendor{}, awsWording().sentence(lookAtKey, verdict{kind: ErrUnreachable, code: "its answer names no key"})
	}
	pinned.key = v.keyID
	return v, nil
}

// awsCalls gives the calls of the wrapper what it leaves out: a context, and for Decrypt the key. Without one, KMS
// opens a blob with whatever key it names, a stranger's too, if the credentials may. The wrapper's calls take turns, so
// that it is known whose context is meant.
type awsCalls struct {
	turn chan struct{}
	key  string
	ctx  context.Context //nolint:containedctx // that of the call whose turn it is
}

func (c *awsCalls) begin(ctx context.Context) (func(), error) {
	select {
	case c.turn <- struct{}{}:
		c.ctx = ctx
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *awsCalls) before(r *request.Request) {
	r.SetContext(c.ctx)
	if in, ok := r.Params.(*kms.DecryptInput); ok {
		in.KeyId = new(c.key)
	}
}

func (c *awsCalls) after(r *request.Request) {
	if out, ok := r.Data.(*kms.DecryptOutput); ok && r.Error == nil && !c.sealed(aws.StringValue(out.KeyId)) {
		clear(out.Plaintext)
		r.Error, r.Retryable = problem(ErrNotItsKey, "AWS KMS opened this with another key than the root's"), new(false)
	}
}

// sealed says whether a key id is the root's: its ARN, or that of the same key in another region.
func (c *awsCalls) sealed(id string) bool {
	_, other, _ := strings.Cut(id, ":key/")
	_, own, _ := strings.Cut(c.key, ":key/")
	return id == c.key || strings.HasPrefix(own, "mrk-") && other == own
}

func explainAWS(operation string, err error) error {
	w := awsWording()
	if own, ok := errors.AsType[*problemError](err); ok {
		return own
	}
	awsErr, ok := errors.AsType[awserr.Error](err)
	if !ok {
		if problem := w.unreachable(err); problem != nil {
			return problem
		}
		return w.sentence(operation, verdict{kind: ErrUnreachable})
	}
	code := awsErr.Code()
	kind := ErrUnreachable
	switch code {
	case "NoCredentialProviders", "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException", "ExpiredToken",
		"InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "MissingAuthenticationTokenException",
		"EnvAccessKeyNotFound", "EnvSecretNotFound", "SharedCredsLoad", "EC2RoleRequestError", "CredentialsEndpointError",
		"WebIdentityErr":
		kind = ErrCredentials
	case "AccessDeniedException", "AccessDenied":
		kind = ErrRefused
	case kms.ErrCodeNotFoundException, kms.ErrCodeInvalidArnException:
		kind = ErrNoKey
	case kms.ErrCodeDisabledException, kms.ErrCodeInvalidStateException:
		kind = ErrDisabled
	case kms.ErrCodeIncorrectKeyException, kms.ErrCodeInvalidCiphertextException:
		kind = ErrNotItsKey
	default:
		if request.IsErrorThrottle(err) || request.IsErrorThrottle(awsErr) || code == kms.ErrCodeLimitExceededException {
			kind = ErrThrottled
		} else if problem := w.unreachable(awsErr.OrigErr()); problem != nil {
			return problem
		}
	}
	return w.sentence(operation, verdict{kind, code})
}
