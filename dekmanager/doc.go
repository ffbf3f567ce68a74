// Package dekmanager is the API of go-pg-dek-manager over keyhold: named keys whose bytes the application uses itself.
//
// It is for programs that have that API. Others should rather let keyhold seal, which ties what is sealed to its place
// and knows which version is in use.
//
//	db, err := sql.Open("pgx", dsn) // or an SQLite database, with foreign keys on
//	manager, err := dekmanager.NewDEKManager(db, mek, // 32 bytes that are random
//		dekmanager.WithDEKRotationPeriod(30*24*time.Hour),
//	)
//	defer manager.Shutdown()
//
//	err = manager.RegisterKey(ctx, "user_data") // or not: it comes into being at first use
//	dek, version, err := manager.GetDEK(ctx, "user_data")
//	defer clear(dek)
//	// Encrypt with dek, and keep version beside it.
//
//	dek, err = manager.GetDEKByVersion(ctx, "user_data", version) // to decrypt, however often it was rotated since
//
//	err = manager.RegisterKeyWithFunction(ctx, "tokens", "aes128-random") // 16 bytes
//	err = manager.RotateDEK(ctx, "user_data") // now; by its period it is rotated anyway
//	name, newest, err := manager.GetKeyInfo(ctx, "user_data")
//	names, err := manager.ListKeys(ctx)
//	err = manager.RemoveKey(ctx, "user_data") // with all that was encrypted with it
//
//	// With a new MEK, everything carries over.
//	manager, err = dekmanager.NewDEKManager(db, newMEK, dekmanager.WithOldMEK(mek))
//
// Any number of processes may do so over one database. The MEK is an external root of keyhold, and seals one key alone,
// the installation key; so a transition takes no longer for many keys than for one. An instance whose MEK was the
// current one reads keys and warns, and makes, rotates and removes none; it may register names. The keys are raw data
// keys of one scope ([WithScope]), and the command line has them, too: "keyhold key list dek-manager".
//
// # Coming from go-pg-dek-manager
//
// The import and the tables are others; "keyhold import dek" brings the keys, with their versions. Of the first
// generation, whose functions had no context, GetDEK, GetDEKByVersion and RotateDEK get one as their first argument.
// RemoveDEKs, which deleted the versions up to a number, has no counterpart. Where old versions are really to go, the
// command line gives up one at a time, by "keyhold key disable" and, when nobody missed it, "keyhold key destroy"; so
// do Disable and Destroy of [DEKManager.Manager].
//
// This differs, on purpose:
//
//   - The bytes that are returned are a copy, which the caller may clear.
//   - A rotation or a removal is seen by all instances within 7 s, not within the cache's expiration.
//   - When a key is due is stored with it: of any number of instances one rotates it, and restarting changes nothing.
//   - Cleanup deletes no version of a key. It takes away what only a former MEK needs.
//   - Shutdown returns when the work is done, and calls after it are errors.
//   - Old versions are kept ready as new ones are.
//   - Only the first start makes tables.
//   - RemoveKey keeps the name and the number of the last version. After it, the name has to be registered again, and
//     its versions count on.
//   - GetDEK and RotateDEK of a name that was never registered make its key, as in the first generation.
//   - RegisterKey is refused for a name with another function, whether or not this process knows the key.
//   - A function may not have the name of one that is built in. One that this process lacks holds up only its own keys.
//   - A name is 1 to 255 bytes of UTF-8 without control characters, and without white space at its ends. A key has at
//     most 65,535 versions, and a version 1 to 1024 bytes.
//   - RemoveKey is refused with an old MEK.
//   - Errors can be told apart by [errors.Is] and keyhold's own. Their texts are others; the words that stand in quotes
//     in the comments of the functions are the same.
package dekmanager
