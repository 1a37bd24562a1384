//! Routes that are pushed into the store: checked before they are stored, and again by each gateway before it takes them up.
//!
//! Invariant: a gateway takes a version up whole or stays with the one that it has, and never goes back to a lower number.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::does_without;
use super::reload::{ModuleCheck, build_snapshot, first_line, start_all};
use super::{App, AppError, files, kept_routes};
use crate::config::{self, Config, ConfigError, ConfigErrors, Pushed, RoutesFrom};
use crate::domain::{Digest, Timestamp};
use crate::gateway::Snapshot;
use crate::store::{NewRoutes, RefusedRoutes, RoutesVersion, Store, StoreError, routes_conflict};

/// Bound of a text: 10,000 routes take about half of it.
pub const MAX_ROUTES_BYTES: u64 = 4 << 20;
/// Of a reason in the list of nodes, in characters.
const MAX_REASON: usize = 1_000;
/// As errors call what is pushed.
const FILE: &str = "routes";
/// Times that a push is begun anew because another one was faster.
const TRIES: usize = 5;

/// Routes that somebody pushes.
pub struct Push {
    pub text: String,
    /// The version that is to be the newest so far; 0: none.
    pub expect: Option<u64>,
    /// The version whose text it is.
    pub again: Option<u64>,
}

/// They are in the store, and in use here.
pub struct Done {
    pub version: RoutesVersion,
    /// `false`: the newest version had this text already.
    pub is_new: bool,
    pub warnings: Vec<ConfigError>,
}

impl App {
    /// What a push of this text would be warned of; all that it would be refused for.
    pub async fn check_routes(&self, text: String) -> Result<Vec<ConfigError>, AppError> {
        let digest = Digest::of(text.as_bytes());
        self.prepare(Pushed { version: 0, text: text.into(), digest }).await.map(|(_, warnings)| warnings)
    }

    /// `by`: who pushes.
    pub async fn push_routes(&self, by: &str, push: Push) -> Result<Done, AppError> {
        let again = push.again;
        let result = self.try_push(by, push).await;
        let (subject, mut detail) = match &result {
            Ok(Done { version, is_new: true, .. }) => {
                (format!("routes@{}", version.version), version.digest.to_string())
            }
            Ok(Done { version, .. }) => (format!("routes@{}", version.version), "unchanged".to_owned()),
            Err(error) => ("routes".to_owned(), format!("refused: {}", first_line(error))),
        };
        if let Some(again) = again {
            detail += &format!(", the text of version {again}");
        }
        let action = if again.is_some() { "routes.rollback" } else { "routes.push" };
        self.audit(by.to_owned(), action, subject, detail).await;
        result
    }

    /// Pushes the text of an older version again: of the one before the newest, unless one is named.
    pub async fn roll_back_routes(
        &self,
        by: &str,
        version: Option<u64>,
        expect: Option<u64>,
    ) -> Result<Done, AppError> {
        let versions = self.store.routes_versions().await?;
        let found = match version {
            Some(number) => versions.iter().find(|v| v.version == number),
            None => versions.get(1),
        };
        let version = found.ok_or_else(|| match version {
            Some(number) => StoreError::NotFound(format!("routes@{number}")),
            None => StoreError::Conflict("there is no version before the newest one: push another one".into()),
        })?;
        let text = fetch(&*self.store, version).await?.text.to_string();
        // What is rolled back is what was looked at.
        let expect = expect.or(versions.first().map(|newest| newest.version));
        self.push_routes(by, Push { text, expect, again: Some(version.version) }).await
    }

    async fn try_push(&self, by: &str, Push { text, expect, again }: Push) -> Result<Done, AppError> {
        if self.config().store.routes == RoutesFrom::File {
            let why = "this gateway has its routes in its configuration file: set `store.routes = \"store\"`, or change the \
                       file and reload";
            return Err(StoreError::Conflict(why.into()).into());
        }
        let digest = Digest::of(text.as_bytes());
        let shared: Arc<str> = text.as_str().into();
        let _turn = self.swapping.lock().await;
        for _ in 0..TRIES {
            let newest = self.store.routes_versions().await?.into_iter().next();
            let number = newest.as_ref().map_or(0, |newest| newest.version);
            if let Some(expect) = expect.filter(|expect| *expect != number) {
                return Err(routes_conflict(number, expect).into());
            }
            let above = self.routes_in_use();
            let same = newest.filter(|newest| newest.digest == digest && newest.version >= above);
            let version = same.as_ref().map_or(number.max(above) + 1, |same| same.version);
            let (next, warnings) = self.prepare(Pushed { version, text: shared.clone(), digest }).await?;
            let is_new = same.is_none();
            let stored = match same {
                Some(same) => same,
                None => {
                    let new = NewRoutes { text: text.clone(), at: Timestamp::now(), by: by.into(), again, above };
                    match self.store.push_routes(new, number).await {
                        Err(StoreError::Conflict(_)) if expect.is_none() => continue,
                        stored => stored?,
                    }
                }
            };
            if version != above {
                self.use_routes(next, &warnings).await;
            }
            return Ok(Done { version: stored, is_new, warnings });
        }
        Err(StoreError::Conflict("others push at the same time: look at what they pushed, then try again".into())
            .into())
    }

    /// Takes up the newest version if it is newer than the one in use; whether it did. One that can't be taken up is told of. Called
    /// with the turn to swap.
    pub(super) async fn follow_routes(&self) -> Result<bool, AppError> {
        if self.config().store.routes == RoutesFrom::File {
            self.refuse(None);
            return Ok(false);
        }
        let newest = self.store.routes_versions().await?.into_iter().next();
        self.shared.set_routes_of_disk(false);
        let Some(newest) = newest.filter(|newest| newest.version > self.routes_in_use()) else {
            self.refuse(None);
            return Ok(false);
        };
        match self.take_up_routes(&newest).await {
            Ok(()) => Ok(true),
            Err(AppError::Store(error)) => Err(error.into()),
            Err(error) => {
                self.refuse(Some(refused(newest.version, &error)));
                Ok(false)
            }
        }
    }

    async fn take_up_routes(&self, version: &RoutesVersion) -> Result<(), AppError> {
        let pushed = fetch(&*self.store, version).await?;
        let (config, warnings) = with_version(&self.config(), pushed, self.config_file.as_deref()).await?;
        let next = self.build(config).await?;
        self.use_routes(next, &warnings).await;
        Ok(())
    }

    /// What a configuration file that is read again is with the routes that are in use.
    pub(super) async fn keep_routes(&self, own: Config) -> Result<Config, AppError> {
        if own.store.routes == RoutesFrom::File {
            return Ok(own);
        }
        let before = self.config();
        let pushed = match &before.pushed {
            Some(pushed) => Some(pushed.clone()),
            None => match newest(&*self.store).await {
                // It has none to lose.
                Err(AppError::Store(_)) if before.lacks_routes() => None,
                newest => newest?,
            },
        };
        match pushed {
            Some(pushed) => with_version(&own, pushed, self.config_file.as_deref()).await.map(|(config, _)| config),
            None if before.lacks_routes() => Ok(own),
            None => Err(AppError::setting(
                "store.routes",
                "no routes were pushed yet, and this gateway would lose those that it has: push some through a gateway that is \
                 started with this setting",
            )),
        }
    }

    /// Tries the newest version again, if it was refused: what it lacked may have come without a change in the store.
    pub(super) async fn retry_routes(&self) {
        if self.shared.refused_routes().is_none() {
            return;
        }
        let _turn = self.swapping.lock().await;
        if let Err(error) = self.follow_routes().await {
            tracing::warn!(%error, "newer routes are not taken up yet");
        }
    }

    fn routes_in_use(&self) -> u64 {
        self.config().pushed.as_ref().map_or(0, |pushed| pushed.version)
    }

    /// What would be in use with these routes; all that keeps this gateway from using them.
    async fn prepare(&self, pushed: Pushed) -> Result<(Arc<Snapshot>, Vec<ConfigError>), AppError> {
        let (config, warnings) = self.checked(pushed).await?;
        match self.build(config).await {
            // Such as an upstream's address that has none here.
            Err(AppError::Setting { key, message }) => {
                let errors = vec![ConfigError { key, line: 0, message }];
                Err(ConfigErrors { file: FILE.to_owned(), errors }.into())
            }
            built => built.map(|next| (next, warnings)),
        }
    }

    /// This gateway's configuration with these routes, all of whose modules are there and start, and the tiers of all living keys.
    async fn checked(&self, pushed: Pushed) -> Result<(Config, Vec<ConfigError>), AppError> {
        let file = FILE.to_owned();
        let (config, mut warnings) = with_routes(&self.config(), pushed, &file, self.config_file.as_deref()).await?;
        if config.routes.is_empty() {
            let message = "there are none, so that every request would get 404: is this the right file?".into();
            return Err(
                ConfigErrors { file, errors: vec![ConfigError { key: "routes".into(), line: 0, message }] }.into()
            );
        }
        let ModuleCheck { mut errors, missing, warnings: idle } = self.check_modules(&config).await?;
        errors.extend(missing);
        errors.extend(self.lost_tiers(&config).await?);
        warnings.extend(idle);
        if errors.is_empty() { Ok((config, warnings)) } else { Err(ConfigErrors { file, errors }.into()) }
    }

    async fn build(&self, config: Config) -> Result<Arc<Snapshot>, AppError> {
        let before = self.snapshot();
        let built = build_snapshot(Arc::new(config), &*self.store, Some(&before), &self.shared.metrics).await?;
        start_all(&built.snapshot, &before, &self.shared.engine).await?;
        Ok(built.snapshot)
    }

    /// Nothing fails here.
    async fn use_routes(&self, next: Arc<Snapshot>, warnings: &[ConfigError]) {
        self.shared.snapshot.store(next.clone());
        if let Some(pushed) = &next.config.pushed {
            let (version, digest, generation) = (pushed.version, pushed.digest, next.generation);
            tracing::info!(version, %digest, generation, "pushed routes are in use");
            tell(&shown(pushed), warnings);
        }
        self.refuse(None);
        self.told.notify_one();
        kept_routes::write(&next.config).await;
    }

    pub(super) fn refuse(&self, routes: Option<RefusedRoutes>) {
        self.shared.metrics.set_routes(self.routes_in_use(), routes.is_some());
        if self.shared.set_refused_routes(routes.clone()) != routes {
            if let Some(RefusedRoutes { version, reason }) = &routes {
                tracing::error!(version, reason, "pushed routes are not taken up, nothing was changed");
            }
            self.told.notify_one();
        }
    }
}

/// What is to be told of the routes that a gateway starts with.
#[derive(Default)]
pub(super) struct AtStart {
    pub refused: Option<RefusedRoutes>,
    /// The store could not be asked, so they are those that were used last.
    pub are_of_disk: bool,
}

/// A gateway's own configuration with the newest routes, or with those that it used last, or with none.
pub(super) async fn at_start(
    own: Config,
    store: &dyn Store,
    file: Option<&Path>,
) -> Result<(Config, AtStart), AppError> {
    if own.store.routes == RoutesFrom::File {
        return Ok((own, AtStart::default()));
    }
    let last = kept_routes::read(&own).await;
    match newest_at_start(&own, store, last.as_ref(), file).await {
        Err(AppError::Store(error)) if does_without(&own, &error) => {}
        found => return found,
    }
    let Some(last) = last else {
        tracing::warn!("the routes are in the store: the gateway is not ready until it has told them");
        return Ok((own, AtStart::default()));
    };
    let version = last.version;
    tracing::warn!(version, "the routes are those that were in use last, until the store has told newer ones");
    let (config, routes) = begin_with(&own, version, with_version(&own, last, file).await)?;
    Ok((config, AtStart { are_of_disk: true, ..routes }))
}

async fn newest_at_start(
    own: &Config,
    store: &dyn Store,
    last: Option<&Pushed>,
    file: Option<&Path>,
) -> Result<(Config, AtStart), AppError> {
    let newest = store.routes_versions().await?.into_iter().next();
    let found = newest.as_ref().map_or(0, |newest| newest.version);
    if let Some(last) = last.filter(|last| last.version > found) {
        let version = last.version;
        tracing::error!(
            version,
            found,
            "the store has older routes than this gateway, which keeps its own: push again"
        );
        return begin_with(own, version, with_version(own, last.clone(), file).await);
    }
    let Some(newest) = newest else {
        tracing::warn!("no routes were pushed yet: the gateway is not ready until `wasmgate routes push`");
        return Ok((own.clone(), AtStart::default()));
    };
    let config = match fetch(store, &newest).await {
        Ok(pushed) => with_version(own, pushed, file).await,
        Err(error) => Err(error),
    };
    begin_with(own, newest.version, config)
}

fn begin_with(
    own: &Config,
    version: u64,
    found: Result<(Config, Vec<ConfigError>), AppError>,
) -> Result<(Config, AtStart), AppError> {
    match found {
        Ok((config, warnings)) => {
            config.pushed.iter().for_each(|pushed| tell(&shown(pushed), &warnings));
            Ok((config, AtStart::default()))
        }
        Err(AppError::Store(error)) => Err(error.into()),
        Err(error) => Ok((own.clone(), AtStart { refused: Some(refused(version, &error)), ..AtStart::default() })),
    }
}

pub(super) fn refused(version: u64, error: &AppError) -> RefusedRoutes {
    let reason = error.to_string().lines().collect::<Vec<_>>().join("; ");
    RefusedRoutes { version, reason: reason.chars().take(MAX_REASON).collect() }
}

async fn newest(store: &dyn Store) -> Result<Option<Pushed>, AppError> {
    match store.routes_versions().await?.first() {
        Some(version) => fetch(store, version).await.map(Some),
        None => Ok(None),
    }
}

async fn fetch(store: &dyn Store, version: &RoutesVersion) -> Result<Pushed, AppError> {
    let (number, digest) = (version.version, version.digest);
    let text = store.routes_text(number).await?.filter(|text| Digest::of(text.as_bytes()) == digest);
    let text = text.ok_or_else(|| AppError::setting("routes", format!("the text of version {number} is not there")))?;
    Ok(Pushed { version: number, text: text.into(), digest })
}

async fn with_version(
    own: &Config,
    pushed: Pushed,
    file: Option<&Path>,
) -> Result<(Config, Vec<ConfigError>), AppError> {
    let name = shown(&pushed);
    with_routes(own, pushed, &name, file).await
}

/// And what the text, which messages call `name`, is warned of. Files that it names are taken from the folder of the
/// configuration `file`.
async fn with_routes(
    own: &Config,
    pushed: Pushed,
    name: &str,
    file: Option<&Path>,
) -> Result<(Config, Vec<ConfigError>), AppError> {
    let (text, name, base) = (pushed.text.clone(), name.to_owned(), base(file));
    let read = move || config::pushed_part(&text, &name, &base, files::look);
    let part = tokio::task::spawn_blocking(read).await.map_err(|e| AppError::setting("routes", e))??;
    let warnings = part.warnings.clone();
    Ok((own.with_pushed(pushed, part), warnings))
}

fn base(file: Option<&Path>) -> PathBuf {
    let file = file.and_then(|file| std::path::absolute(file).ok());
    file.as_deref().and_then(Path::parent).unwrap_or(Path::new(".")).to_owned()
}

/// As messages name it.
fn shown(pushed: &Pushed) -> String {
    format!("routes@{}", pushed.version)
}

fn tell(file: &str, warnings: &[ConfigError]) {
    for warning in warnings {
        tracing::warn!("{}", warning.in_file(file));
    }
}
