//! Pure types and maths shared by every layer: no I/O, no async, no proxy, engine or database types.

/// For `#[serde(try_from = "String", into = "String")]`: a record has the text.
macro_rules! text_in_records {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = <$name as std::str::FromStr>::Err;

            fn try_from(s: String) -> Result<Self, Self::Error> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

pub mod clock;
pub mod id;
pub mod key;
pub mod limits;
pub mod module;
pub mod outcome;
pub mod path;
pub mod problem;
pub mod rejection;
pub mod tier;
pub mod usage;

pub use clock::Timestamp;
pub use id::{Digest, InvalidName, KeyId, Name, OwnerId, TokenId};
pub use key::{ApiKey, KeyHash, Principal, Scope, ScopeSet, Subject};
pub use limits::{Limits, LimitsChange};
pub use module::{Abi, Bundle, Module, ModuleRef, ModuleShape, ModuleVersion, Phase, Selector};
pub use outcome::{GuestFailure, Meter, Reply};
pub use rejection::{NotLoadable, Rejection};
pub use tier::{FailMode, Quota, Tier, Window};
pub use usage::{UsageDelta, UsageRecord};
