// Package pkcs11 is an external root that is an AES key in a token of PKCS #11: a hardware security module, or SoftHSM.
//
// It is C that speaks to C, so it is only in programs that are built with the tag pkcs11, and with cgo.
package pkcs11
