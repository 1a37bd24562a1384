//! The key cache and the authenticator over it.
//!
//! Invariant: what a read brings goes into the cache only when no invalidation of it came between its start and its end,
//! so a revocation made here is seen by the next request. Expiry is checked at every use, whatever the cache holds.
//!
//! Revocations made by others come over a link of the store's. While that is lost, and for what was read before it was
//! there again, a key is read anew before it is believed; only where the store can't be asked is it served as stale.
//!
//! A key costs one HMAC-SHA256 and a look-up here, about 350 ns on a machine with SHA instructions; one in use just now is
//! found by [`Front`] for a fifth of that. Looking up by a keyed hash needs no constant-time comparison: nobody without the
//! pepper can steer how much of it agrees.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use moka::sync::Cache;
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::sync::{Semaphore, watch};

pub use super::pepper::Peppers;

use super::format::{self, KEY_PREFIX, TOKEN_PREFIX};
use super::front::Front;
use crate::domain::{ApiKey, KeyHash, Rejection, Timestamp};
use crate::store::{AdminToken, Role, Store, StoreError};

/// Store reads for authentication at once.
const MAX_LOOKUPS: usize = 64;
/// Different keys being looked up or waiting for it; further ones are refused with `StoreUnavailable` at once.
const MAX_LOADS: usize = 4096;
/// A look-up with its wait.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Reads of one load when invalidations keep crossing it.
const MAX_READS: usize = 8;
/// While nobody tells of changes, what was read is believed for so long.
const UNTOLD_FRESH: Duration = Duration::from_millis(250);
/// After a failed look-up, stale keys are served for so long without asking again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Admin tokens remembered, and for how long after they were last found good.
const MAX_TOKENS: u64 = 1_000;
const TOKEN_STALE: Duration = Duration::from_secs(3600);
/// Absent keys are remembered in a cache of their own, this much smaller, so that junk puts out no good key.
const ABSENT_SHARE: u64 = 4;

pub struct Settings {
    pub key_fresh: Duration,
    pub key_max_stale: Duration,
    pub absent_ttl: Duration,
    pub entries: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Malformed, unknown, revoked or expired: the client is never told which.
    Invalid,
    StoreUnavailable,
}

impl From<AuthError> for Rejection {
    fn from(e: AuthError) -> Self {
        match e {
            AuthError::Invalid => Rejection::Unauthorized,
            AuthError::StoreUnavailable => Rejection::StoreUnavailable,
        }
    }
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStats {
    pub hit: u64,
    pub miss: u64,
    pub stale: u64,
    pub negative: u64,
}

/// A key or token as shown once to its owner. Not `Debug`: it never goes to a log.
pub struct Minted {
    pub secret: String,
    pub hash: KeyHash,
    pub pepper: u32,
}

pub struct Authenticator {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    /// Keyed states by pepper id, newest first; a use clones one, which saves hashing the pepper.
    peppers: Vec<(u32, Hmac<Sha256>)>,
    settings: Settings,
    /// Live, expired and revoked records by the hash that the store has.
    known: Cache<KeyHash, Arc<Entry>, ByHash>,
    /// Fresh entries of `known`, by the presented text.
    front: Front<Arc<Entry>>,
    /// By the hash under the newest pepper.
    absent: Cache<KeyHash, (), ByHash>,
    /// Admin tokens that were good a while ago, by the hash that the store has.
    tokens: Cache<KeyHash, AdminToken, ByHash>,
    /// How often one of them was forgotten.
    forgotten: AtomicU64,
    flights: Mutex<Flights>,
    lookups: Semaphore,
    link: Link,
    hit: AtomicU64,
    miss: AtomicU64,
    stale: AtomicU64,
    negative: AtomicU64,
}

struct Entry {
    key: Arc<ApiKey>,
    fetched: Instant,
    /// Of the link, when its read began.
    epoch: u64,
    refreshing: AtomicBool,
}

/// What is known of changes that others make.
struct Link {
    began: Instant,
    is_up: AtomicBool,
    /// How often it was there again.
    epoch: AtomicU64,
    /// When a look-up failed last, in milliseconds since `began`; 0: never.
    failed_at: AtomicU64,
    /// Since look-ups fail, that has been said.
    is_failing: AtomicBool,
}

impl Link {
    /// The store may have something else by now, and nobody has told.
    fn doubts(&self, entry: &Entry) -> bool {
        entry.epoch != self.epoch.load(Ordering::Acquire)
            || !self.is_up.load(Ordering::Acquire) && entry.fetched.elapsed() > UNTOLD_FRESH
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A look-up has failed; whether that is news.
    fn failed(&self) -> bool {
        self.failed_at.store(self.now().max(1), Ordering::Relaxed);
        !self.is_failing.swap(true, Ordering::Relaxed)
    }

    fn failed_just_now(&self) -> bool {
        let at = self.failed_at.load(Ordering::Relaxed);
        at != 0 && Duration::from_millis(self.now().saturating_sub(at)) < RETRY_AFTER
    }
}

/// One lock for all, so that "it was not invalidated" and "nobody can join this load any more" are one step. It is taken
/// on misses and invalidations only.
#[derive(Default)]
struct Flights(HashMap<KeyHash, Load>);

struct Load {
    answer: watch::Receiver<Option<Answer>>,
    /// Under every pepper, newest first.
    hashes: Arc<[KeyHash]>,
    /// One of them was invalidated since the read began.
    crossed: bool,
}

type Answer = Result<Option<Arc<ApiKey>>, AuthError>;

impl Authenticator {
    pub fn new(store: Arc<dyn Store>, peppers: Peppers, settings: Settings) -> Arc<Self> {
        let mut peppers = peppers.0;
        peppers.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let keyed = |(id, pepper): (u32, Vec<u8>)| {
            (id, Hmac::<Sha256>::new_from_slice(&pepper).expect("HMAC takes keys of any length"))
        };
        let peppers: Vec<_> = peppers.into_iter().map(keyed).collect();
        let absent = settings.entries / ABSENT_SHARE;
        let mut front_key = [0; 16];
        if let Some((_, keyed)) = peppers.first() {
            let mut mac = keyed.clone();
            mac.update(b"front of the key cache");
            front_key.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        }
        let inner = Inner {
            known: Cache::builder().max_capacity(settings.entries.max(1)).build_with_hasher(ByHash::default()),
            absent: Cache::builder()
                .max_capacity(absent.max(1))
                .time_to_live(settings.absent_ttl)
                .build_with_hasher(ByHash::default()),
            tokens: Cache::builder()
                .max_capacity(MAX_TOKENS)
                .time_to_live(TOKEN_STALE)
                .build_with_hasher(ByHash::default()),
            forgotten: AtomicU64::new(0),
            front: Front::new(front_key),
            store,
            peppers,
            settings,
            flights: Mutex::default(),
            lookups: Semaphore::new(MAX_LOOKUPS),
            link: Link {
                began: Instant::now(),
                is_up: AtomicBool::new(true),
                epoch: AtomicU64::new(0),
                failed_at: AtomicU64::new(0),
                is_failing: AtomicBool::new(false),
            },
            hit: AtomicU64::new(0),
            miss: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            negative: AtomicU64::new(0),
        };
        Arc::new(Self { inner: Arc::new(inner) })
    }

    /// Fast path: `Some` when the cache answers alone (a live key, or a refusal); `None`: call [`Self::authenticate`].
    pub fn cached(&self, presented: &str, now: Timestamp) -> Option<Result<Arc<ApiKey>, AuthError>> {
        if !format::is_well_formed(presented, KEY_PREFIX) {
            return Some(Err(AuthError::Invalid));
        }
        let inner = &self.inner;
        let place = inner.front.place(presented);
        if let Some(entry) = inner.front.get(place)
            && entry.fetched.elapsed() <= inner.settings.key_fresh
            && !inner.link.doubts(&entry)
            && entry.key.is_live(now)
        {
            inner.hit.fetch_add(1, Ordering::Relaxed);
            return Some(Ok(entry.key.clone()));
        }
        let newest = inner.hash(presented, 0)?;
        let Some(entry) = inner.find_known(&newest, presented) else {
            // `get`, as `contains_key` would leave junk that is asked for again and again first to be put out.
            inner.absent.get(&newest)?;
            inner.negative.fetch_add(1, Ordering::Relaxed);
            return Some(Err(AuthError::Invalid));
        };
        if !entry.key.is_live(now) {
            // Final, so its age doesn't matter: no record becomes live again.
            inner.hit.fetch_add(1, Ordering::Relaxed);
            return Some(Err(AuthError::Invalid));
        }
        if inner.link.doubts(&entry) {
            if !inner.link.failed_just_now() || !inner.may_outlive(&entry) {
                return None;
            }
            inner.stale.fetch_add(1, Ordering::Relaxed);
        } else if entry.fetched.elapsed() <= inner.settings.key_fresh {
            inner.hit.fetch_add(1, Ordering::Relaxed);
            inner.front.put(place, entry.clone());
        } else if inner.may_outlive(&entry) {
            inner.stale.fetch_add(1, Ordering::Relaxed);
            self.refresh(&entry, newest, presented)?;
        } else {
            return None;
        }
        Some(Ok(entry.key.clone()))
    }

    pub async fn authenticate(&self, presented: &str, now: Timestamp) -> Result<Arc<ApiKey>, AuthError> {
        if let Some(answer) = self.cached(presented, now) {
            return answer;
        }
        self.inner.miss.fetch_add(1, Ordering::Relaxed);
        let newest = self.inner.hash(presented, 0).ok_or(AuthError::Invalid)?;
        let mut answer = self.inner.load(newest, presented).ok_or(AuthError::StoreUnavailable)?;
        // An error: the load's task has ended without an answer.
        let answer = answer.wait_for(Option::is_some).await.map_err(|_| AuthError::StoreUnavailable)?;
        match answer.as_ref() {
            Some(Ok(Some(key))) if key.is_live(now) => Ok(key.clone()),
            Some(Ok(_)) => Err(AuthError::Invalid),
            Some(Err(AuthError::StoreUnavailable)) => self.inner.outlived(&newest, presented, now),
            Some(Err(e)) => Err(e.clone()),
            None => Err(AuthError::StoreUnavailable),
        }
    }

    /// Nobody tells any more of what others change.
    pub fn link_lost(&self) {
        self.inner.link.is_up.store(false, Ordering::Release);
    }

    /// Changes are told of again, from before this call on.
    pub fn link_restored(&self) {
        self.inner.link.epoch.fetch_add(1, Ordering::AcqRel);
        self.inner.link.is_up.store(true, Ordering::Release);
        // What others have made meanwhile exists.
        self.inner.absent.invalidate_all();
        self.forget_tokens();
    }

    /// Each is read anew before it is known again.
    pub fn forget_tokens(&self) {
        self.inner.forgotten.fetch_add(1, Ordering::AcqRel);
        self.inner.tokens.invalidate_all();
    }

    /// A revocation or rotation of a key or a token is seen by the next request.
    pub fn invalidate(&self, hash: &KeyHash) {
        let mut flights = self.inner.flights.lock();
        for load in flights.0.values_mut() {
            load.crossed |= load.hashes.contains(hash);
        }
        self.inner.known.invalidate(hash);
        self.inner.absent.invalidate(hash);
        self.inner.forgotten.fetch_add(1, Ordering::AcqRel);
        self.inner.tokens.invalidate(hash);
        // Last: who saw the old generation may still have read the old entry.
        self.inner.front.forget_all();
    }

    /// A new random key, `wg_live_...`.
    pub fn mint(&self) -> Result<Minted, getrandom::Error> {
        self.inner.mint(KEY_PREFIX)
    }

    /// A new random admin token, `wg_admin_...`.
    pub fn mint_token(&self) -> Result<Minted, getrandom::Error> {
        self.inner.mint(TOKEN_PREFIX)
    }

    pub fn has_pepper(&self, id: u32) -> bool {
        self.inner.peppers.iter().any(|(known, _)| *known == id)
    }

    /// Keys may have been made under a pepper that is not here any more.
    pub fn lacks_older_peppers(&self) -> bool {
        self.inner.peppers.first().is_some_and(|(newest, _)| !(1..*newest).all(|id| self.has_pepper(id)))
    }

    /// The hash under which an admin token is stored: under the newest pepper.
    pub fn hash_token(&self, presented: &str) -> KeyHash {
        self.inner.hash(presented, 0).unwrap_or(KeyHash([0; 32]))
    }

    /// Straight from the store: admin requests are rare, and a revoked token must not work anywhere. While the store can't be
    /// asked, who was known a while ago goes on as a viewer, so that an outage can be watched.
    pub async fn admin_token(&self, presented: &str) -> Result<AdminToken, AuthError> {
        if !format::is_well_formed(presented, TOKEN_PREFIX) {
            return Err(AuthError::Invalid);
        }
        let inner = &self.inner;
        let hashes: Vec<KeyHash> = (0..inner.peppers.len()).filter_map(|n| inner.hash(presented, n)).collect();
        let read = async {
            for hash in &hashes {
                if let Some(token) = inner.store.token_by_hash(hash).await? {
                    return Ok(Some((*hash, token)));
                }
            }
            Ok(None)
        };
        let before = inner.forgotten.load(Ordering::Acquire);
        match inner.bounded(read).await {
            Ok(Some((hash, token))) if token.revoked_at.is_none() => {
                inner.tokens.insert(hash, token.clone());
                // It was revoked while it was read, maybe: whoever forgets it counts first.
                if inner.forgotten.load(Ordering::Acquire) != before {
                    inner.tokens.invalidate(&hash);
                }
                Ok(token)
            }
            Err(AuthError::StoreUnavailable) => {
                let known = hashes.iter().find_map(|hash| inner.tokens.get(hash)).ok_or(AuthError::StoreUnavailable)?;
                Ok(AdminToken { role: Role::Viewer, ..known })
            }
            Ok(_) => {
                hashes.iter().for_each(|hash| inner.tokens.invalidate(hash));
                Err(AuthError::Invalid)
            }
            Err(error) => Err(error),
        }
    }

    pub fn stats(&self) -> CacheStats {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let inner = &self.inner;
        CacheStats {
            hit: read(&inner.hit),
            miss: read(&inner.miss),
            stale: read(&inner.stale),
            negative: read(&inner.negative),
        }
    }

    /// Starts one refresh of a stale entry; `None` when there is no runtime to run it on, so that the caller loads.
    fn refresh(&self, entry: &Arc<Entry>, newest: KeyHash, presented: &str) -> Option<()> {
        if entry.refreshing.swap(true, Ordering::AcqRel) {
            return Some(());
        }
        let started = tokio::runtime::Handle::try_current().ok().and_then(|runtime| {
            let mut done = self.inner.load(newest, presented)?;
            let entry = entry.clone();
            runtime.spawn(async move {
                let _ = done.wait_for(Option::is_some).await;
                // When it failed, a later use tries again.
                entry.refreshing.store(false, Ordering::Release);
            });
            Some(())
        });
        if started.is_none() {
            entry.refreshing.store(false, Ordering::Release);
        }
        started
    }
}

impl Inner {
    /// Under the `n`th newest pepper.
    fn hash(&self, text: &str, n: usize) -> Option<KeyHash> {
        let (_, keyed) = self.peppers.get(n)?;
        let mut mac = keyed.clone();
        mac.update(text.as_bytes());
        Some(KeyHash(mac.finalize().into_bytes().into()))
    }

    /// Under any pepper.
    fn find_known(&self, newest: &KeyHash, presented: &str) -> Option<Arc<Entry>> {
        let older = || (1..self.peppers.len()).find_map(|n| self.known.get(&self.hash(presented, n)?));
        self.known.get(newest).or_else(older)
    }

    /// While the store can't be asked.
    fn may_outlive(&self, entry: &Entry) -> bool {
        let Settings { key_fresh, key_max_stale, .. } = self.settings;
        !key_max_stale.is_zero() && entry.fetched.elapsed() <= key_fresh.saturating_add(key_max_stale)
    }

    /// A key whose look-up has failed.
    fn outlived(&self, newest: &KeyHash, presented: &str, now: Timestamp) -> Result<Arc<ApiKey>, AuthError> {
        let entry = self
            .find_known(newest, presented)
            .filter(|entry| self.may_outlive(entry))
            .ok_or(AuthError::StoreUnavailable)?;
        if !entry.key.is_live(now) {
            return Err(AuthError::Invalid);
        }
        self.stale.fetch_add(1, Ordering::Relaxed);
        Ok(entry.key.clone())
    }

    fn mint(&self, prefix: &str) -> Result<Minted, getrandom::Error> {
        let secret = format::generate(prefix)?;
        let (pepper, _) = self.peppers.first().ok_or(getrandom::Error::UNSUPPORTED)?;
        let hash = self.hash(&secret, 0).ok_or(getrandom::Error::UNSUPPORTED)?;
        Ok(Minted { secret, hash, pepper: *pepper })
    }

    /// Joins the load of this key or starts one, in a task of its own: the client that began it may go away.
    fn load(self: &Arc<Self>, newest: KeyHash, presented: &str) -> Option<watch::Receiver<Option<Answer>>> {
        let mut flights = self.flights.lock();
        if let Some(load) = flights.0.get(&newest) {
            return Some(load.answer.clone());
        }
        if flights.0.len() >= MAX_LOADS {
            return None;
        }
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let hashes: Arc<[KeyHash]> = (0..self.peppers.len()).filter_map(|n| self.hash(presented, n)).collect();
        let (sender, receiver) = watch::channel(None);
        flights.0.insert(newest, Load { answer: receiver.clone(), hashes: hashes.clone(), crossed: false });
        drop(flights);
        let flight = Flight { inner: self.clone(), newest, hashes, landed: false };
        runtime.spawn(flight.run(sender));
        Some(receiver)
    }

    async fn bounded<T>(&self, read: impl Future<Output = Result<T, StoreError>>) -> Result<T, AuthError> {
        let permitted = async {
            // The semaphore is never closed.
            let _permit = self.lookups.acquire().await.ok();
            read.await
        };
        let why = match tokio::time::timeout(LOOKUP_TIMEOUT, permitted).await {
            Ok(Ok(found)) => {
                if self.link.is_failing.load(Ordering::Relaxed) && self.link.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("key look-ups work again");
                }
                return Ok(found);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        if self.link.failed() {
            tracing::warn!(error = why, "a key look-up failed; no further ones are told of until one works");
        }
        Err(AuthError::StoreUnavailable)
    }

    async fn find(&self, hashes: &[KeyHash]) -> Result<Option<(KeyHash, ApiKey)>, StoreError> {
        for hash in hashes {
            if let Some(key) = self.store.key_by_hash(hash).await? {
                return Ok(Some((*hash, key)));
            }
        }
        Ok(None)
    }
}

/// A load under way. Dropped without landing (a panic, the runtime's end), others may start anew.
struct Flight {
    inner: Arc<Inner>,
    newest: KeyHash,
    hashes: Arc<[KeyHash]>,
    landed: bool,
}

impl Flight {
    async fn run(mut self, answer: watch::Sender<Option<Answer>>) {
        for _ in 0..MAX_READS {
            if let Some(load) = self.inner.flights.lock().0.get_mut(&self.newest) {
                load.crossed = false;
            }
            let epoch = self.inner.link.epoch.load(Ordering::Acquire);
            let found = self.inner.bounded(self.inner.find(&self.hashes)).await;
            if let Some(landed) = self.land(epoch, found) {
                // Nobody may be waiting any more.
                let _ = answer.send(Some(landed));
                return;
            }
        }
        let _ = answer.send(Some(Err(AuthError::StoreUnavailable)));
    }

    /// `None`: an invalidation crossed the read.
    fn land(&mut self, epoch: u64, found: Result<Option<(KeyHash, ApiKey)>, AuthError>) -> Option<Answer> {
        let mut flights = self.inner.flights.lock();
        if flights.0.get(&self.newest).is_none_or(|load| load.crossed) {
            return None;
        }
        let answer = found.map(|found| {
            found.map(|(hash, key)| {
                let key = Arc::new(key);
                let (fetched, refreshing) = (Instant::now(), AtomicBool::new(false));
                let entry = Entry { key: key.clone(), fetched, epoch, refreshing };
                self.inner.known.insert(hash, Arc::new(entry));
                key
            })
        });
        if let Ok(None) = answer {
            // The store has lost a record that was cached: what is gone isn't served on as stale.
            self.hashes.iter().for_each(|hash| self.inner.known.invalidate(hash));
            self.inner.front.forget_all();
            self.inner.absent.insert(self.newest, ());
        }
        flights.0.remove(&self.newest);
        self.landed = true;
        Some(answer)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            self.inner.flights.lock().0.remove(&self.newest);
        }
    }
}

/// Key hashes are uniform, and nobody without the pepper can choose them: eight of their bytes are hash enough.
#[derive(Clone, Default)]
struct FirstBytes(u64);

type ByHash = BuildHasherDefault<FirstBytes>;

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The length that slices write before their bytes.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
