//! The text form of keys: `wg_live_`, 30 base62 characters, 6 base62 characters of their CRC-32.
//!
//! Invariant: every key made here is well-formed, and telling so neither allocates nor depends on a secret.

pub const KEY_PREFIX: &str = "wg_live_";
pub const TOKEN_PREFIX: &str = "wg_admin_";

/// 30 * log2(62) = 178 bits.
const RANDOM_CHARS: usize = 30;
/// 62^6 is more than 2^32.
const CHECK_CHARS: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Prefix, length, alphabet and checksum are right. Says nothing of whether the key exists.
pub fn is_well_formed(text: &str, prefix: &str) -> bool {
    let Some(body) = text.as_bytes().strip_prefix(prefix.as_bytes()) else { return false };
    if body.len() != RANDOM_CHARS + CHECK_CHARS || !body.iter().all(u8::is_ascii_alphanumeric) {
        return false;
    }
    let (random, check) = body.split_at(RANDOM_CHARS);
    check == checksum(random)
}

/// A new random key or token.
pub fn generate(prefix: &str) -> Result<String, getrandom::Error> {
    let mut random = [0u8; RANDOM_CHARS];
    let mut filled = 0;
    while filled < RANDOM_CHARS {
        let mut bytes = [0u8; 2 * RANDOM_CHARS];
        getrandom::fill(&mut bytes)?;
        // 248 is 4 * 62: larger bytes would make the first characters of the alphabet likelier.
        for byte in bytes.into_iter().filter(|b| *b < 248).take(RANDOM_CHARS - filled) {
            random[filled] = ALPHABET[usize::from(byte) % 62];
            filled += 1;
        }
    }
    let mut text = String::with_capacity(prefix.len() + RANDOM_CHARS + CHECK_CHARS);
    text.push_str(prefix);
    text.extend(random.iter().chain(&checksum(&random)).map(|b| char::from(*b)));
    Ok(text)
}

/// The CRC-32 (IEEE) as base62, most significant first.
fn checksum(random: &[u8]) -> [u8; CHECK_CHARS] {
    let mut rest = crc32fast::hash(random);
    let mut check = [b'0'; CHECK_CHARS];
    for place in check.iter_mut().rev() {
        *place = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_well_formed_under_its_prefix_alone() {
        let key = generate(KEY_PREFIX).unwrap();
        assert_eq!(key.len(), 8 + 36);
        assert!(is_well_formed(&key, KEY_PREFIX));
        assert!(!is_well_formed(&key, TOKEN_PREFIX));
        assert!(is_well_formed(&generate(TOKEN_PREFIX).unwrap(), TOKEN_PREFIX));
    }

    #[test]
    fn the_checksum_is_the_crc_of_the_random_part() {
        // CRC-32 of 30 times `0`, computed with zlib.
        assert_eq!(crc32fast::hash(&[b'0'; 30]), 0x77e5_db82);
        let text = format!("wg_live_{}{}", "0".repeat(30), std::str::from_utf8(&checksum(&[b'0'; 30])).unwrap());
        assert!(is_well_formed(&text, KEY_PREFIX));
    }

    #[test]
    fn any_changed_missing_or_added_character_is_seen() {
        let key = generate(KEY_PREFIX).unwrap();
        for at in 0..key.len() {
            let mut changed = key.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            assert!(!is_well_formed(std::str::from_utf8(&changed).unwrap(), KEY_PREFIX), "place {at}");
            assert!(!is_well_formed(&key[..at], KEY_PREFIX), "length {at}");
        }
        for bad in [format!("{key}0"), format!(" {key}"), String::new(), "wg_live_".into(), "wg_live_ü".into()] {
            assert!(!is_well_formed(&bad, KEY_PREFIX), "{bad:?}");
        }
    }

    #[test]
    fn characters_are_equally_likely() {
        // 40,000 keys give each of 62 characters 19,355 times on average, with a deviation of 138; six of those are
        // passed once in 10^7 runs of this test. Taking bytes modulo 62 would be 20 % off for eight characters.
        let mut seen = [0i64; 128];
        let keys = 40_000;
        for _ in 0..keys {
            let key = generate(KEY_PREFIX).unwrap();
            key.bytes().skip(KEY_PREFIX.len()).take(RANDOM_CHARS).for_each(|b| seen[usize::from(b)] += 1);
        }
        let expected = keys * 30 / 62;
        for c in ALPHABET {
            let n = seen[usize::from(*c)];
            assert!((n - expected).abs() < 6 * 138, "`{}` came {n} times, expected {expected}", char::from(*c));
        }
    }
}
