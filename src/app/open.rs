//! Opens the store that the configuration names.
//!
//! Invariant: a shared store that was lost is not taken for a new one by a gateway that has used it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{AppError, secrets};
use crate::auth::pepper::Peppers;
use crate::auth::secret_file;
use crate::config::store::{OnStart, Redis};
use crate::config::{Config, SecretSource};
use crate::gateway::pem;
use crate::store::embedded::EmbeddedStore;
use crate::store::redis::{Purpose, RedisSettings, RedisStore, Server, Tls};
use crate::store::{Store, StoreError};

/// Between two attempts to reach it.
const AGAIN: Duration = Duration::from_millis(500);
/// While it is not reached, for the same reason, that is told again.
const REMIND: Duration = Duration::from_secs(30);
/// Of a copy, for what Redis answers.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn open(config: &Config, peppers: &Peppers) -> Result<Arc<dyn Store>, AppError> {
    let Some(redis) = &config.store.redis else {
        let store = EmbeddedStore::open(&embedded_file(config))?;
        return match store.mark().await? {
            None => Ok(Arc::new(store)),
            Some(mark) => Err(AppError::setting("data_dir", mark.half_copied())),
        };
    };
    let (id_file, peppers) = (Some(id_file(config)), peppers.fingerprints());
    let store = RedisStore::new(RedisSettings { id_file, peppers, ..settings(redis, &config.data_dir)? });
    let store = store.map_err(|e| AppError::setting("store.redis", e))?;
    let mut told: Option<(String, Instant)> = None;
    loop {
        match (store.check().await, redis.on_start) {
            (Ok(()), _) => return Ok(store),
            (Err(StoreError::Unavailable(why)), OnStart::Wait) => {
                if told.as_ref().is_none_or(|(before, at)| *before != why || at.elapsed() >= REMIND) {
                    tracing::warn!(error = why, "waiting for the store, as `store.redis.on_start` says");
                    told = Some((why, Instant::now()));
                }
                tokio::time::sleep(AGAIN).await;
            }
            (Err(StoreError::Unavailable(why)), OnStart::Degraded) => {
                tracing::warn!(error = why, "starting without the store, as `store.redis.on_start` says");
                return Ok(store);
            }
            (Err(error), _) => return Err(AppError::setting("store.redis", error)),
        }
    }
}

pub fn embedded_file(config: &Config) -> PathBuf {
    config.data_dir.join("wasmgate.redb")
}

/// Where the number of a shared store is. Deleted by an operator who wants a new beginning.
pub fn id_file(config: &Config) -> PathBuf {
    config.data_dir.join("store.id")
}

/// For a copy: it is there, or it can't be used.
pub async fn open_to_copy(config: &Config, peppers: &Peppers, purpose: Purpose) -> Result<Arc<dyn Store>, AppError> {
    let Some(redis) = &config.store.redis else {
        let store = EmbeddedStore::open(&embedded_file(config))?;
        return match store.mark().await?.filter(|_| purpose == Purpose::Source) {
            None => Ok(Arc::new(store)),
            Some(mark) => Err(mark.half_copied().into()),
        };
    };
    let id_file = Some(id_file(config));
    let settings = settings(redis, &config.data_dir)?;
    // Nobody waits for an answer, and pages are larger than what a gateway asks for.
    let (connect, response) = (settings.connect.max(PATIENCE), settings.response.max(PATIENCE));
    let settings = RedisSettings { id_file, peppers: peppers.fingerprints(), purpose, connect, response, ..settings };
    let store = RedisStore::new(settings).map_err(|e| AppError::setting("store.redis", e))?;
    store.check().await.map_err(|e| match e {
        StoreError::Unavailable(_) => e.into(),
        e => AppError::setting("store.redis", e),
    })?;
    Ok(store)
}

/// Whether a gateway with this configuration does without what its store does not answer, at start.
pub fn does_without(config: &Config, error: &StoreError) -> bool {
    let may = config.store.redis.as_ref().is_some_and(|redis| redis.on_start == OnStart::Degraded);
    may && matches!(error, StoreError::Unavailable(_))
}

fn settings(redis: &Redis, data_dir: &Path) -> Result<RedisSettings, AppError> {
    let password = |source: &Option<SecretSource>, key: &str| {
        let load = |source| secret_file::load(source, data_dir, secret_file::random_hex);
        let text = source.as_ref().map(load).transpose().map_err(|e| AppError::setting(key, e))?;
        Ok::<_, AppError>(text.map(|text| text.trim_end().to_owned()))
    };
    pem::install_cryptography();
    let server = match (redis.urls.as_slice(), &redis.primary) {
        (urls, Some(primary)) => Server::Sentinel { urls: urls.to_vec(), primary: primary.clone() },
        ([url], None) if !redis.cluster => Server::Single(url.clone()),
        (urls, None) => Server::Cluster(urls.to_vec()),
    };
    let record_key = secrets::record_key(&redis.record_key, data_dir);
    let authorities = redis.ca_file.as_ref().map(std::fs::read).transpose();
    let authorities = authorities.map_err(|e| AppError::setting("store.redis.ca_file", e))?;
    Ok(RedisSettings {
        username: redis.username.clone(),
        password: password(&redis.password, "store.redis.password_file")?,
        sentinel_username: redis.sentinel_username.clone(),
        sentinel_password: password(&redis.sentinel_password, "store.redis.sentinel_password_file")?,
        tls: authorities.map(|pem| Tls { authorities: Some(pem), certificate: None }),
        prefix: redis.prefix.clone(),
        replicas: redis.replicas,
        connect: redis.timeout.max(Duration::from_secs(1)),
        response: redis.timeout,
        ..RedisSettings::new(server, record_key.map_err(|e| AppError::setting("store.redis.record_key_file", e))?)
    })
}
