//! Who is calling: the key's format, its keyed hash, the key cache over the store, and what a request presented.
//!
//! Invariant: text that is not a well-formed key (prefix, length, alphabet, CRC) reaches neither cache nor store.

pub mod cache;
pub mod credential;
pub mod format;
mod front;
pub mod manage;
pub mod pepper;
pub mod secret_file;
