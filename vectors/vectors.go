// Package vectors holds test vectors of keyhold's format and of what it is made of.
//
// Other implementations of docs/format.md can use format-v1.json as it is; this package is for the tests of this one. A
// further file of the same form is checked by
//
//	KEYHOLD_VECTORS=FILE go test -count=1 ./vectors/...
//
// and made, with random values, by
//
//	go run ./vectors/gen >FILE
package vectors

import (
	"bytes"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
)

// Format is format-v1.json, which an independent implementation made.
//
//go:embed format-v1.json
var Format []byte

// XAES holds the vectors of c2sp.org/XAES-256-GCM.
//
//go:embed xaes-256-gcm.json
var XAES []byte

// Wycheproof holds the files of Project Wycheproof, in the folder wycheproof.
//
//go:embed wycheproof/*.json
var Wycheproof embed.FS

// Hex is bytes that are hexadecimal text in a vector file.
type Hex []byte

// MarshalText implements [encoding.TextMarshaler].
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

// File is a file of vectors of the format. Entries with Valid false have to be refused; Note says what is wrong with
// them.
type File struct {
	Format        string        `json:"format"`
	Inst          Hex           `json:"inst"`
	IK            Hex           `json:"ik"`
	IKKID         Hex           `json:"ik_kid"`
	Pin           Hex           `json:"pin"`
	IKNext        IKNext        `json:"ik_next"`
	Enc           []Enc         `json:"enc"`
	Context       []Context     `json:"context"`
	RootSlot      []RootSlot    `json:"root_slot"`
	SlotsManifest SlotsManifest `json:"slots_manifest"`
	Wrap          []Wrap        `json:"wrap"`
	Message       []Message     `json:"message"`
	Manifest      []Manifest    `json:"manifest"`
	Name          []Name        `json:"name"`
	BlindIndex    []BlindIndex  `json:"blind_index"`
	Legacy        []Legacy      `json:"legacy"`
	LocalRoot     LocalRoot     `json:"local_root"`
	RawRoot       []RawRoot     `json:"raw_root"`
	Recovery      []Recovery    `json:"recovery"`
	Shares        []Shares      `json:"shares"`
}

// The entries of a [File], by the section of docs/format.md that they are about.
type (
	// Enc is a tuple, section 1.
	Enc struct {
		Label  string `json:"label"`
		Fields []Hex  `json:"fields"`
		Enc    Hex    `json:"enc"`
	}
	// RootSlot is the payload of a root slot, section 2, and the blob that its row has in the manifest of the slots.
	RootSlot struct {
		SlotID      string `json:"slot_id"`
		WrapperType string `json:"wrapper_type"`
		IKKID       Hex    `json:"ik_kid"`
		State       uint8  `json:"state"`
		Payload     Hex    `json:"payload"`
		Blob        Hex    `json:"blob"`
	}
	// IKNext is what tells that one installation key follows another, section 2.
	IKNext struct {
		NewIK  Hex `json:"new_ik"`
		NewPin Hex `json:"new_pin"`
		MAC    Hex `json:"mac"`
	}
	// Wrap is a wrapped key, sections 3 and 4. ID and Key are there if it is valid.
	Wrap struct {
		Note      string `json:"note"`
		Valid     bool   `json:"valid"`
		Kind      string `json:"kind"`
		RootKeyID string `json:"root_key_id"`
		Purpose   string `json:"purpose"`
		Alg       uint8  `json:"alg"`
		Version   uint32 `json:"version"`
		Created   int64  `json:"created"`
		Parent    Hex    `json:"parent"`
		ParentKID Hex    `json:"parent_kid"`
		Commit    Hex    `json:"commit"`
		Blob      Hex    `json:"blob"`
		ID        string `json:"id,omitempty"`
		Key       Hex    `json:"key,omitempty"`
	}
	// Message is a message of either form, section 5. Plaintext is there if it is valid.
	Message struct {
		Note       string `json:"note"`
		Valid      bool   `json:"valid"`
		RootKeyID  string `json:"root_key_id"`
		Purpose    string `json:"purpose"`
		DEK        Hex    `json:"dek"`
		Context    Hex    `json:"context"`
		Ciphertext Hex    `json:"ciphertext"`
		Plaintext  *Hex   `json:"plaintext,omitempty"`
	}
	// Context is a context made of parts, section 5.
	Context struct {
		Parts   []Hex `json:"parts"`
		Context Hex   `json:"context"`
	}
	// Legacy is what go-kms-wrapping sealed before an import, section 5.
	Legacy struct {
		Key        Hex `json:"key"`
		AAD        Hex `json:"aad"`
		Ciphertext Hex `json:"ciphertext"`
		Plaintext  Hex `json:"plaintext"`
	}
	// BlindIndex is section 6.
	BlindIndex struct {
		Alg   uint8  `json:"alg"`
		DEK   Hex    `json:"dek"`
		Index string `json:"index"`
		Value Hex    `json:"value"`
		Size  int    `json:"size"`
		Out   Hex    `json:"out"`
	}
	// Manifest is the manifest of a root key or data key, section 7.
	Manifest struct {
		Note        string            `json:"note"`
		Valid       bool              `json:"valid"`
		IK          Hex               `json:"ik"`
		Kind        string            `json:"kind"`
		Owner       string            `json:"owner"`
		Purpose     string            `json:"purpose"`
		KeyID       string            `json:"key_id"`
		Seq         uint64            `json:"seq"`
		Head        uint32            `json:"head_version"`
		RotateEvery uint64            `json:"rotate_every_seconds"`
		MaxMessages uint64            `json:"max_messages"`
		Generator   string            `json:"generator,omitempty"`
		Versions    []ManifestVersion `json:"versions"`
		MAC         Hex               `json:"mac"`
	}
	// ManifestVersion is a version in a [Manifest].
	ManifestVersion struct {
		Version uint32 `json:"version"`
		State   uint8  `json:"state"`
		Alg     uint8  `json:"alg"`
		Commit  Hex    `json:"commit"`
		ID      string `json:"id"`
	}
	// Name is what is known of the name of a raw data key, section 7.
	Name struct {
		Note      string `json:"note"`
		Valid     bool   `json:"valid"`
		IK        Hex    `json:"ik"`
		RootKeyID string `json:"root_key_id"`
		Purpose   string `json:"purpose"`
		Seq       uint64 `json:"seq"`
		Generator string `json:"generator"`
		Last      uint32 `json:"last"`
		State     uint8  `json:"state"`
		MAC       Hex    `json:"mac"`
	}
	// SlotsManifest is the manifest of the slots in a file's RootSlot, in their order, section 7.
	SlotsManifest struct {
		Seq    uint64 `json:"seq"`
		Active string `json:"active"`
		MAC    Hex    `json:"mac"`
	}
	// LocalRoot is section 8.
	LocalRoot struct {
		File         string `json:"file"`
		KeyID        Hex    `json:"key_id"`
		Key          Hex    `json:"key"`
		WrapperKeyID string `json:"wrapper_key_id"`
		AAD          Hex    `json:"aad"`
		Nonce        Hex    `json:"nonce"`
		Ciphertext   Hex    `json:"ciphertext"`
		Plaintext    Hex    `json:"plaintext"`
	}
	// RawRoot is a file with a raw root, and what that sealed, section 8. If it is not valid and has a Key, the
	// ciphertext has to be refused; if it has none, the file, and there is nothing else.
	RawRoot struct {
		Note         string `json:"note"`
		Valid        bool   `json:"valid"`
		File         Hex    `json:"file"`
		Key          Hex    `json:"key,omitempty"`
		AAD          Hex    `json:"aad,omitempty"`
		Nonce        Hex    `json:"nonce,omitempty"`
		WrapperKeyID string `json:"wrapper_key_id,omitempty"`
		Ciphertext   Hex    `json:"ciphertext,omitempty"`
		Plaintext    Hex    `json:"plaintext,omitempty"`
	}
	// Recovery is a recovery line, section 8. Inst and IK are there if it is valid.
	Recovery struct {
		Note  string `json:"note"`
		Valid bool   `json:"valid"`
		Line  string `json:"line"`
		Inst  Hex    `json:"inst,omitempty"`
		IK    Hex    `json:"ik,omitempty"`
	}
	// Shares are the lines of shares, section 8, that give IK together if they are valid.
	Shares struct {
		Note  string   `json:"note"`
		Valid bool     `json:"valid"`
		Lines []string `json:"lines"`
		IK    Hex      `json:"ik,omitempty"`
	}
)

// Parse reads a file of vectors. A class of entries that is missing, empty or unknown is an error, so that none goes
// unchecked.
func Parse(b []byte) (*File, error) {
	var classes map[string]json.RawMessage
	if err := json.Unmarshal(b, &classes); err != nil {
		return nil, fmt.Errorf("parse vectors: %w", err)
	}
	f := new(File)
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(f); err != nil {
		return nil, fmt.Errorf("parse vectors: %w", err)
	}
	fields := reflect.ValueOf(f).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Tag.Get("json")
		if v := fields.Field(i); v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0 {
			return nil, fmt.Errorf("parse vectors: there is no %s", name)
		}
		delete(classes, name)
	}
	for name := range classes {
		return nil, fmt.Errorf("parse vectors: unknown class of entries %q", name)
	}
	if f.Format != "keyhold v1" {
		return nil, fmt.Errorf("parse vectors: unknown format %q", f.Format)
	}
	return f, nil
}
