//! The pushed routes that were in use last, in a file of the data directory: a start in an outage of a shared store has them.
//!
//! Invariant: the file is whole or missing, and counts for nothing where its text does not fit its digest, or its store is another one.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::journal::replace;
use super::open;
use crate::config::{Config, Pushed};
use crate::domain::Digest;

const FILE: &str = "routes.last";

#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    /// The number of the store that has them.
    store: Cow<'a, str>,
    version: u64,
    digest: Digest,
    text: Cow<'a, str>,
}

pub async fn read(config: &Config) -> Option<Pushed> {
    let store = store_of(config)?;
    let file = config.data_dir.join(FILE);
    let kept = match tokio::fs::read(&file).await {
        Ok(kept) => serde_json::from_slice::<Kept<'_>>(&kept).map_err(|e| e.to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    let whole = kept.and_then(|kept| {
        let is_whole = Digest::of(kept.text.as_bytes()) == kept.digest;
        if is_whole { Ok(kept) } else { Err("its text does not fit its digest".into()) }
    });
    match whole {
        Ok(Kept { version, digest, text, store: of }) if of == store => {
            Some(Pushed { version, text: text.as_ref().into(), digest })
        }
        Ok(_) => None,
        Err(error) => {
            tracing::error!(error, file = %file.display(), "the routes that were in use last can't be read");
            None
        }
    }
}

/// Those in use. Without the file a gateway goes on as well.
pub async fn write(config: &Arc<Config>) {
    let (config, file) = (config.clone(), config.data_dir.join(FILE));
    let write = move || match (&config.pushed, store_of(&config)) {
        (Some(Pushed { version, text, digest }), Some(store)) => {
            let (version, digest) = (*version, *digest);
            let kept = Kept { store: store.into(), version, digest, text: Cow::Borrowed(text) };
            replace(&config.data_dir.join(FILE), &serde_json::to_vec(&kept)?)
        }
        _ => Ok(()),
    };
    let written = tokio::task::spawn_blocking(write).await;
    if let Err(error) = written.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
        let file = file.display();
        tracing::error!(%error, %file, "the routes in use are not kept for a start without the store; make room there");
    }
}

/// The number of the shared store that this gateway uses.
fn store_of(config: &Config) -> Option<String> {
    config.store.redis.as_ref()?;
    let id = std::fs::read_to_string(open::id_file(config)).ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}
