//! The text form of keys: `wg_live_`, 30 base62 characters, 6 base62 characters of their CRC-32.

pub const KEY_PREFIX: &str = "wg_live_";
pub const TOKEN_PREFIX: &str = "wg_admin_";

/// Prefix, length, alphabet and checksum are right. Says nothing of whether the key exists.
pub fn is_well_formed(_text: &str, _prefix: &str) -> bool {
    unimplemented!()
}
