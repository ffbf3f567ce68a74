package seal

import "crypto/sha256"

// DigestSize is how many bytes a [Digest] has.
const DigestSize = sha256.Size

// Digest is SHA-256 of b, for comparing with what is no longer there. It is no authentication, and b is nothing secret.
func Digest(b []byte) [DigestSize]byte { return sha256.Sum256(b) }
