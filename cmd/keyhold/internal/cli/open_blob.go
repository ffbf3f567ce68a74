package cli

import (
	"context"
	"errors"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// openWith opens a ciphertext of seal's, or a BlobInfo, with the key that ref names.
func openWith(ctx context.Context, s *session, ref key.Ref, sealed []byte, parts []string) ([]byte, error) {
	info, ok := blobInfo(sealed)
	if !ok {
		return s.Open(ctx, ref, sealed, keyhold.Context(parts...))
	}
	return openBlob(ctx, s, ref, info, parts)
}

// openAny opens either with the key that it names, and says which that is.
func openAny(ctx context.Context, s *session, sealed []byte, parts []string) ([]byte, key.Ref, error) {
	info, ok := blobInfo(sealed)
	if !ok {
		return s.OpenAny(ctx, sealed, keyhold.Context(parts...))
	}
	ref, err := s.Find(ctx, key.ID(info.GetKeyInfo().GetKeyId()))
	if errors.Is(err, keyhold.ErrNotFound) {
		err = keyhold.ErrOpen
	}
	if err != nil {
		return nil, ref, err
	}
	plaintext, err := openBlob(ctx, s, ref, info, parts)
	return plaintext, ref, err
}

// blobInfo reads a marshalled BlobInfo of go-kms-wrapping's that names a key version. A ciphertext of seal's is none.
func blobInfo(sealed []byte) (*wrapping.BlobInfo, bool) {
	if _, err := envelope.ParseMessage(sealed); err == nil {
		return nil, false
	}
	var info wrapping.BlobInfo
	if proto.Unmarshal(sealed, &info) != nil || key.ID(info.GetKeyInfo().GetKeyId()).Validate() != nil {
		return nil, false
	}
	return &info, true
}

func openBlob(ctx context.Context, s *session, ref key.Ref, info *wrapping.BlobInfo, parts []string) ([]byte, error) {
	w, err := s.Wrapper(ctx, ref)
	if err != nil {
		return nil, err
	}
	var options []wrapping.Option
	switch {
	case len(parts) > 1:
		return nil, usageError("a BlobInfo has one context, which is what WithAad was given", "give --context once")
	case len(parts) == 1 && parts[0] != "":
		options = append(options, wrapping.WithAad([]byte(parts[0])))
	}
	return w.Decrypt(ctx, info, options...)
}
