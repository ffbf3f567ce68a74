package cli

import (
	"bytes"
	"errors"
	"unicode"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

func (a *app) openCommand() *cobra.Command {
	var ref key.Ref
	var parts []string
	c := &cobra.Command{
		Use:     "open [--scope S --purpose P] [--context C]... <in >out",
		Aliases: []string{"decrypt"},
		Short:   "Decrypt standard input to standard output",
		Long: `Decrypts what seal wrote, given the same --context. With --scope and --purpose it opens only what was sealed with that key;
without both it opens what any key of the installation sealed, and says on standard error whose it was. If anything is wrong,
nothing is written to standard output. A marshalled BlobInfo of go-kms-wrapping's opens, too, if a key of the installation
sealed it, also before that key was imported; its WithAad is --context.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if (ref.Scope == "") != (ref.Purpose == "") || cmd.Flags().Changed("scope") != (ref.Scope != "") {
				return usageError("open needs both --scope and --purpose, or neither", "")
			}
			return a.with(ctx, keyhold.Config{}, func(s *session) error {
				sealed, err := readAll(ctx, a.in, envelope.MaxPlaintext+envelope.AttachedOverhead)
				if err != nil {
					return err
				}
				if ref.Scope != "" {
					plaintext, err := openWith(ctx, s, ref, sealed, parts)
					if err != nil {
						return asText(sealed, unknown(ctx, s, ref, err))
					}
					return a.write(plaintext)
				}
				plaintext, whose, err := openAny(ctx, s, sealed, parts)
				if err != nil {
					return asText(sealed, err)
				}
				if a.json {
					a.printJSON(a.err, map[string]map[string]string{"opened": {"scope": string(whose.Scope), "purpose": string(whose.Purpose)}})
				} else {
					a.say("opened with the %v", whose)
				}
				return a.write(plaintext)
			})
		},
	}
	refFlags(c, &ref, &parts)
	return c
}

// asText says of a ciphertext that does not open that it is text, if it is: all are bytes.
func asText(sealed []byte, err error) error {
	isText := len(sealed) > 0 && !bytes.ContainsFunc(sealed, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) && !unicode.IsSpace(r) })
	if !errors.Is(err, keyhold.ErrOpen) || !isText {
		return err
	}
	return failed("open", "the ciphertext does not open here: it is text, and a ciphertext is bytes", "decode it first, as with base64 --decode")
}
