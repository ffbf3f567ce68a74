package roots

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/alicloudkms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/azurekeyvault/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/gcpckms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/ocikms/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// standIn is a vendor on this machine.
type standIn struct {
	name    string
	begin   func(t *testing.T) (k *fake, address string) // with credentials in place
	keyID   string                                       // what KeyId has to be before and after
	rotates bool                                         // KeyId changes with the key
	proof   func(r *http.Request) bool                   // that a request has credentials
	hosts   []string
	plain   func() wrapping.Wrapper
	config  []wrapping.Option
	stops   bool // calls in progress end with the context, too, and are not repeated
}

const (
	awsKey = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	gcpKey = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k"
	ociKey = "ocid1.key.oc1.iad.aaaa.bbbb"
	aliKey = "08c33a6f-4e0a-4a1b-a3fa-7ddfa1d4fb73"
)

func standIns() []standIn {
	return []standIn{
		{
			name: "transit", begin: beginTransit, keyID: "team/transit/k", hosts: []string{"127.0.0.1"}, stops: true,
			proof: func(r *http.Request) bool {
				return r.Header.Get("X-Vault-Token") == "hvs."+secretText && r.Header.Get("X-Vault-Namespace") == "team"
			},
			plain: func() wrapping.Wrapper { return transit.NewWrapper() },
			config: []wrapping.Option{
				transit.WithMountPath("transit"), transit.WithKeyName("k"), transit.WithToken("hvs." + secretText), transit.WithNamespace("team"),
			},
		},
		{
			name: "awskms", begin: beginAWS, keyID: awsKey, hosts: []string{"kms.eu-central-1.amazonaws.com"}, stops: true,
			proof: func(r *http.Request) bool {
				return strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKID"+secretText+"/") &&
					r.Header.Get("X-Amz-Security-Token") == "token"+secretText
			},
			plain:  func() wrapping.Wrapper { return awskms.NewWrapper() },
			config: []wrapping.Option{wrapping.WithKeyId(awsKey), awskms.WithRegion("eu-central-1")},
		},
		{
			name: "gcpckms", begin: beginGCP, keyID: gcpKey, hosts: []string{"cloudkms.googleapis.com"}, stops: true,
			proof: func(r *http.Request) bool { return strings.Count(r.Header.Get("Authorization"), ".") == 2 },
			plain: func() wrapping.Wrapper { return gcpckms.NewWrapper() },
			config: []wrapping.Option{
				gcpckms.WithProject("p"), gcpckms.WithRegion("europe-west3"), gcpckms.WithKeyRing("r"), gcpckms.WithCryptoKey("k"),
				gcpckms.WithKeyNotRequired(true),
			},
		},
		{
			name: "azurekeyvault", begin: beginAzure, keyID: azureVersion(1), rotates: true, hosts: []string{"v.vault.azure.net"}, stops: true,
			proof:  func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer token"+secretText },
			plain:  func() wrapping.Wrapper { return azurekeyvault.NewWrapper() },
			config: []wrapping.Option{azurekeyvault.WithVaultName("v"), azurekeyvault.WithKeyName("k")},
		},
		{
			name: "ocikms", begin: beginOCI, keyID: ociKey, hosts: []string{"x-crypto.", "x-management."},
			proof: func(r *http.Request) bool {
				return strings.HasPrefix(r.Header.Get("Authorization"), `Signature version="1",headers="date (request-target) host`)
			},
			plain: func() wrapping.Wrapper { return ocikms.NewWrapper() },
			config: []wrapping.Option{
				wrapping.WithKeyId(ociKey), ocikms.WithCryptoEndpoint("https://x-crypto.kms.us-ashburn-1.oraclecloud.com"),
				ocikms.WithManagementEndpoint("https://x-management.kms.us-ashburn-1.oraclecloud.com"), ocikms.WithAuthTypeApiKey(true),
			},
		},
		{
			name: "alicloudkms", begin: beginAli, keyID: aliKey, hosts: []string{"kms.eu-central-1.aliyuncs.com"},
			proof: func(r *http.Request) bool {
				q := r.URL.Query()
				return q.Get("AccessKeyId") == "LTAI"+secretText && q.Get("Signature") != "" && q.Get("Version") == "2016-01-20"
			},
			plain: func() wrapping.Wrapper { return alicloudkms.NewWrapper() },
			config: []wrapping.Option{
				wrapping.WithKeyId(aliKey), alicloudkms.WithRegion("eu-central-1"), alicloudkms.WithDomain("kms.eu-central-1.aliyuncs.com"),
				alicloudkms.WithAccessKey("LTAI" + secretText), alicloudkms.WithSecretKey(secretText),
			},
		},
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// answer is how a vendor says that something is wrong.
type answer struct {
	status int
	code   string
}

// beginTransit follows https://developer.hashicorp.com/vault/api-docs/secret/transit.
func beginTransit(t *testing.T) (*fake, string) {
	k := newFake("k")
	server := httptest.NewServer(vaultHandler(k))
	t.Cleanup(server.Close)
	world.mu.Lock()
	world.seen = nil
	world.mu.Unlock()
	set(t, "VAULT_TOKEN", "hvs."+secretText)
	return k, "transit:" + server.URL + "/transit/k?namespace=team"
}

func vaultHandler(k *fake) http.Handler {
	wrong := func(w http.ResponseWriter, status int, text string) {
		reply(w, status, map[string]any{"errors": []string{text}})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		world.mu.Lock()
		world.seen = append(world.seen, r)
		world.mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/renew-self") {
			wrong(w, 403, "permission denied")
			return
		}
		var in struct{ Plaintext, Ciphertext string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the caller goes away
		k.called(r.URL.Path, r)
		switch k.is() {
		case disabled:
			if in.Ciphertext != "" {
				wrong(w, 400, "ciphertext or signature version is disallowed by policy (too old)")
				return
			}
		case denied:
			wrong(w, 403, "1 error occurred:\n\t* permission denied\n\n")
			return
		case badCredentials:
			wrong(w, 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
			return
		case unknownKey:
			wrong(w, 400, "encryption key not found")
			return
		case throttled:
			wrong(w, 429, "request path rate limited")
			return
		case broken:
			wrong(w, 500, "internal error\nwith "+secretText)
			return
		case well, hung, otherText:
		}
		switch r.URL.Path {
		case "/v1/transit/encrypt/k":
			plain, _ := base64.StdEncoding.DecodeString(in.Plaintext)
			reply(w, 200, map[string]any{"data": map[string]any{
				"ciphertext": fmt.Sprintf("vault:v%d:%s", k.newest(), base64.StdEncoding.EncodeToString(k.seal(plain))), "key_version": k.newest(),
			}})
		case "/v1/transit/decrypt/k":
			part := strings.Split(in.Ciphertext, ":")
			ct, _ := base64.StdEncoding.DecodeString(part[len(part)-1])
			plain, _, ok := k.open(ct, "k")
			if !ok || len(part) != 3 || part[0] != "vault" {
				wrong(w, 400, "cipher: message authentication failed")
				return
			}
			reply(w, 200, map[string]any{"data": map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plain)}})
		default:
			wrong(w, 404, "no handler for route")
		}
	})
}

// beginAWS follows the AWS JSON protocol 1.1 of KMS.
func beginAWS(t *testing.T) (*fake, string) {
	k := newFake(awsKey)
	set(t, "AWS_ACCESS_KEY_ID", "AKID"+secretText, "AWS_SECRET_ACCESS_KEY", "s"+secretText, "AWS_SESSION_TOKEN", "token"+secretText)
	host(t, "kms.eu-central-1.amazonaws.com", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
		k.called(action, r)
		wrong := map[mood]answer{
			disabled: {400, "DisabledException"}, denied: {400, "AccessDeniedException"}, unknownKey: {400, "NotFoundException"},
			badCredentials: {400, "UnrecognizedClientException"}, throttled: {400, "ThrottlingException"}, broken: {500, "KMSInternalException"},
		}[k.is()]
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		if wrong.status != 0 && (action != "DescribeKey" || k.is() != disabled) {
			reply(w, wrong.status, map[string]any{"__type": wrong.code, "message": "line\nwith x-amz-security-token:token" + secretText})
			return
		}
		var in struct {
			KeyID                     string
			Plaintext, CiphertextBlob []byte
		}
		_ = json.NewDecoder(r.Body).Decode(&in)
		switch action {
		case "DescribeKey":
			reply(w, 200, map[string]any{"KeyMetadata": map[string]any{"KeyId": k.key[strings.LastIndex(k.key, "/")+1:], "Arn": k.key}})
		case "Encrypt":
			k.mu.Lock()
			k.asked = in.KeyID
			k.mu.Unlock()
			reply(w, 200, map[string]any{"KeyId": k.key, "CiphertextBlob": k.seal(in.Plaintext)})
		case "Decrypt":
			plain, by, ok := k.open(in.CiphertextBlob, "")
			switch {
			case !ok:
				reply(w, 400, map[string]any{"__type": "InvalidCiphertextException"})
			case in.KeyID != "" && in.KeyID != by:
				reply(w, 400, map[string]any{"__type": "IncorrectKeyException"})
			default:
				reply(w, 200, map[string]any{"KeyId": by, "Plaintext": plain})
			}
		}
	}))
	return k, "awskms:" + awsKey
}

func rsaKey(t *testing.T, kind string, encode func(*rsa.PrivateKey) []byte) string {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: encode(private)}))
}

type gcpServer struct {
	kmspb.UnimplementedKeyManagementServiceServer
	*fake
}

func (g gcpServer) refusal(ctx context.Context, name string) error {
	g.called(name, new(http.Request).WithContext(ctx))
	if ctx.Err() != nil { // the deadline, which the caller sent along and may be about to notice later than this
		<-g.released
		return status.FromContextError(ctx.Err()).Err()
	}
	code, wrong := map[mood]codes.Code{
		disabled: codes.FailedPrecondition, denied: codes.PermissionDenied, unknownKey: codes.NotFound,
		badCredentials: codes.Unauthenticated, throttled: codes.ResourceExhausted, broken: codes.Internal,
	}[g.is()]
	if wrong {
		return status.Error(code, "line\nwith "+secretText)
	}
	return nil
}

func (g gcpServer) Encrypt(ctx context.Context, in *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	if err := g.refusal(ctx, "Encrypt "+in.GetName()); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s/cryptoKeyVersions/%d", g.key, g.newest())
	return &kmspb.EncryptResponse{Name: name, Ciphertext: g.seal(in.GetPlaintext())}, nil
}

func (g gcpServer) Decrypt(ctx context.Context, in *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	if err := g.refusal(ctx, "Decrypt "+in.GetName()); err != nil {
		return nil, err
	}
	plain, _, ok := g.open(in.GetCiphertext(), in.GetName())
	if !ok {
		return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}
	return &kmspb.DecryptResponse{Plaintext: plain}, nil
}

func beginGCP(t *testing.T) (*fake, string) {
	k := newFake(gcpKey)
	file := filepath.Join(t.TempDir(), "account.json")
	private := rsaKey(t, "PRIVATE KEY", func(k *rsa.PrivateKey) []byte { b, _ := x509.MarshalPKCS8PrivateKey(k); return b })
	account, _ := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "id", "private_key": private, "client_email": "a@p.iam.gserviceaccount.com",
		"client_id": "1", "token_uri": "https://oauth2.googleapis.com/token",
	})
	if err := os.WriteFile(file, account, 0o600); err != nil {
		t.Fatal(err)
	}
	set(t, "GOOGLE_APPLICATION_CREDENTIALS", file)
	server := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(server, gcpServer{fake: k})
	host(t, "cloudkms.googleapis.com", server)
	return k, "gcpckms:" + gcpKey
}

func azureVersion(n int) string { return fmt.Sprintf("%032x", n) }

func beginAzure(t *testing.T) (*fake, string) {
	k := newFake("k")
	tenant := "11111111-2222-3333-4444-555555555555"
	set(t, "AZURE_TENANT_ID", tenant, "AZURE_CLIENT_ID", "22222222-2222-3333-4444-555555555555", "AZURE_CLIENT_SECRET", secretText)
	host(t, "login.microsoftonline.com", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		login := "https://login.microsoftonline.com/" + tenant
		switch {
		case strings.Contains(r.URL.Path, "discovery/instance"):
			reply(w, 200, map[string]any{"tenant_discovery_endpoint": login + "/v2.0/.well-known/openid-configuration", "metadata": []any{}})
		case strings.Contains(r.URL.Path, "openid-configuration"):
			reply(w, 200, map[string]any{
				"token_endpoint": login + "/oauth2/v2.0/token", "authorization_endpoint": login + "/oauth2/v2.0/authorize",
				"issuer": "https://login.microsoftonline.com/" + tenant + "/v2.0",
			})
		case k.is() == badCredentials:
			reply(w, 401, map[string]any{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid\nclient " + secretText})
		default:
			reply(w, 200, map[string]any{"access_token": "token" + secretText, "expires_in": 3600, "token_type": "Bearer"})
		}
	}))
	host(t, "v.vault.azure.net", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+tenant+`", resource="https://vault.azure.net"`)
			reply(w, 401, map[string]any{"error": map[string]any{"code": "Unauthorized"}})
			return
		}
		k.called(r.Method+" "+r.URL.Path, r)
		wrong := map[mood]answer{
			disabled: {403, "KeyDisabled"}, denied: {403, "ForbiddenByRbac"}, unknownKey: {404, "KeyNotFound"}, throttled: {429, "Throttled"},
			broken: {500, "InternalServerError"},
		}[k.is()]
		if wrong.status != 0 && (r.Method == http.MethodPost || k.is() != disabled) {
			w.Header().Set("Retry-After-Ms", "1")
			code := map[int]string{403: "Forbidden"}[wrong.status]
			reply(w, wrong.status, map[string]any{"error": map[string]any{
				"code": code + map[bool]string{true: wrong.code}[code == ""], "message": "line\nwith " + secretText,
				"innererror": map[string]any{"code": wrong.code},
			}})
			return
		}
		var in struct{ Alg, Value string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		value, _ := base64.RawURLEncoding.DecodeString(in.Value)
		kid := func(n int) string { return "https://v.vault.azure.net/keys/k/" + azureVersion(n) }
		part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		switch part[len(part)-1] {
		case "wrapkey":
			reply(w, 200, map[string]any{"kid": kid(k.newest()), "value": base64.RawURLEncoding.EncodeToString(k.seal(value))})
		case "unwrapkey":
			plain, _, ok := k.open(value, "k")
			if version := fmt.Sprintf("k|%d|", len(part)); !ok || in.Alg != "RSA-OAEP-256" || bytes.HasPrefix(value, []byte(version)) {
				reply(w, 400, map[string]any{"error": map[string]any{"code": "BadParameter"}})
				return
			}
			reply(w, 200, map[string]any{"kid": kid(1), "value": base64.RawURLEncoding.EncodeToString(plain)})
		default:
			reply(w, 200, map[string]any{"key": map[string]any{"kid": kid(k.newest()), "kty": "RSA"}})
		}
	}))
	return k, "azurekeyvault:https://v.vault.azure.net/keys/k"
}

func beginOCI(t *testing.T) (*fake, string) {
	k := newFake(ociKey)
	dir := t.TempDir()
	private := rsaKey(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey)
	files := map[string]string{
		"key.pem": private,
		"config": "[DEFAULT]\nuser=ocid1.user.oc1..u\nfingerprint=20:3b:97:13:55:1c:5b:0d:d3:37:d8:50:4e:c5:3a:34\nkey_file=" +
			filepath.Join(dir, "key.pem") + "\ntenancy=ocid1.tenancy.oc1..t\nregion=us-ashburn-1\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(t, "OCI_CONFIG_FILE", filepath.Join(dir, "config"))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.called(r.Method+" "+r.URL.Path, r)
		wrong := map[mood]answer{
			disabled: {409, "IncorrectState"}, denied: {404, "NotAuthorizedOrNotFound"}, badCredentials: {401, "NotAuthenticated"},
			throttled: {429, "TooManyRequests"},
		}[k.is()]
		if wrong.status != 0 {
			reply(w, wrong.status, map[string]any{"code": wrong.code, "message": "line\nwith " + secretText})
			return
		}
		var in struct{ KeyID, Plaintext, Ciphertext string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		switch {
		case strings.HasSuffix(r.URL.Path, "/encrypt"):
			plain, _ := base64.StdEncoding.DecodeString(in.Plaintext)
			reply(w, 200, map[string]any{"ciphertext": base64.StdEncoding.EncodeToString(k.seal(plain))})
		case strings.HasSuffix(r.URL.Path, "/decrypt"):
			ct, _ := base64.StdEncoding.DecodeString(in.Ciphertext)
			plain, _, ok := k.open(ct, in.KeyID)
			if !ok {
				reply(w, 400, map[string]any{"code": "InvalidParameter", "message": "line\nwith " + secretText})
				return
			}
			reply(w, 200, map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plain), "plaintextChecksum": "0"})
		default:
			reply(w, 200, map[string]any{"id": ociKey, "currentKeyVersion": fmt.Sprintf("ocid1.keyversion.oc1.iad.aaaa.%d", k.newest())})
		}
	})
	host(t, "x-management.kms.us-ashburn-1.oraclecloud.com", handler)
	host(t, "x-crypto.kms.us-ashburn-1.oraclecloud.com", handler)
	return k, "ocikms:" + ociKey + "?crypto-endpoint=https://x-crypto.kms.us-ashburn-1.oraclecloud.com"
}

func beginAli(t *testing.T) (*fake, string) {
	k := newFake(aliKey)
	set(t, "ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI"+secretText, "ALIBABA_CLOUD_ACCESS_KEY_SECRET", secretText)
	host(t, "kms.eu-central-1.aliyuncs.com", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		action := q.Get("Action")
		k.called(action, r)
		wrong := map[mood]answer{
			disabled: {409, "Rejected.Disabled"}, denied: {403, "Forbidden.NoPermission"}, unknownKey: {404, "Forbidden.KeyNotFound"},
			badCredentials: {403, "SignatureDoesNotMatch"}, throttled: {400, "Throttling.User"}, broken: {500, "InternalFailure"},
		}[k.is()]
		if wrong.status != 0 && (action != "DescribeKey" || k.is() != disabled) {
			reply(w, wrong.status, map[string]any{
				"Code": wrong.code, "Message": "server string to sign is:GET&%2F&AccessKeyId%3D" + secretText, "RequestId": "1",
			})
			return
		}
		switch action {
		case "DescribeKey":
			reply(w, 200, map[string]any{"KeyMetadata": map[string]any{"KeyId": aliKey}})
		case "Encrypt":
			plain, _ := base64.StdEncoding.DecodeString(q.Get("Plaintext"))
			reply(w, 200, map[string]any{"KeyId": aliKey, "CiphertextBlob": base64.StdEncoding.EncodeToString(k.seal(plain))})
		case "Decrypt":
			ct, _ := base64.StdEncoding.DecodeString(q.Get("CiphertextBlob"))
			plain, _, ok := k.open(ct, "")
			if !ok {
				reply(w, 400, map[string]any{"Code": "InvalidParameter", "Message": "CiphertextBlob"})
				return
			}
			reply(w, 200, map[string]any{"KeyId": aliKey, "Plaintext": base64.StdEncoding.EncodeToString(plain)})
		}
	}))
	return k, "alicloudkms:acs:kms:eu-central-1:111122223333:key/" + aliKey
}
