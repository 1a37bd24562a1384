//! Bytes of modules by their digest, in pieces: what a gateway of the fleet fetches once, and keeps on its own disk.
//!
//! Invariant: bytes are given out only when they have the digest that was asked for. A blob is in the list before its first piece
//! is there and until its last one is gone, so that whatever fails in between, [`RedisStore::blobs`] names what there is.

use redis::{Cmd, FromRedisValue, Value, cmd};

use super::RedisStore;
use super::link::Channel;
use super::seal::At;
use crate::domain::Digest;
use crate::store::rules::{decode, encode};
use crate::store::{Result, StoreError};

/// Bytes of a piece.
const PIECE: usize = 512 << 10;

impl RedisStore {
    /// Whether it was not there before. What is there is looked through: one that was altered is put right.
    pub async fn put_blob(&self, digest: Digest, bytes: &[u8]) -> Result<bool> {
        match self.get_blob(digest).await {
            Ok(Some(_)) => return Ok(false),
            Ok(None) | Err(StoreError::Corrupt(_)) => {}
            Err(error) => return Err(error),
        }
        if Digest::of(bytes) != digest {
            return Err(StoreError::Corrupt(format!("these are not the bytes of `{digest}`")));
        }
        self.ask(cmd("SADD").arg(self.blob_list()).arg(digest.hex())).await?;
        for (n, piece) in bytes.chunks(PIECE).enumerate() {
            self.ask(cmd("SET").arg(self.piece(digest, n)).arg(piece)).await?;
        }
        let at = self.manifest_place(digest);
        let manifest = self.core.known().await?.seal.seal(&at, &encode(&bytes.len())?);
        self.ask(cmd("SET").arg(&at.key).arg(manifest)).await?;
        Ok(true)
    }

    pub async fn get_blob(&self, digest: Digest) -> Result<Option<Vec<u8>>> {
        let Some(length) = self.manifest(digest).await? else { return Ok(None) };
        let mut bytes = Vec::new();
        for n in 0..length.div_ceil(PIECE) {
            // Whatever is there, not more of it than a piece.
            let piece = self.ask(cmd("GETRANGE").arg(self.piece(digest, n)).arg(0).arg(PIECE - 1)).await?;
            bytes.extend(Vec::<u8>::from_redis_value(piece).map_err(|_| unfit())?);
        }
        if Digest::of(&bytes) != digest {
            self.core.alarm(&self.manifest_place(digest).key);
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Whether it was there.
    pub async fn delete_blob(&self, digest: Digest) -> Result<bool> {
        let length = self.manifest(digest).await?;
        self.ask(cmd("DEL").arg(self.manifest_place(digest).key)).await?;
        // Of one that was cut off, or altered, nobody knows how many pieces it has.
        for n in 0.. {
            let gone = self.ask(cmd("DEL").arg(self.piece(digest, n))).await?;
            if gone == Value::Int(0) && n >= length.unwrap_or(0).div_ceil(PIECE) {
                break;
            }
        }
        self.ask(cmd("SREM").arg(self.blob_list()).arg(digest.hex())).await?;
        Ok(length.is_some())
    }

    /// All that there are, whole or not: what no version names can go.
    pub async fn blobs(&self) -> Result<Vec<Digest>> {
        let found = self.ask(cmd("SMEMBERS").arg(self.blob_list())).await?;
        let found = Vec::<String>::from_redis_value(found).map_err(|_| unfit())?;
        self.core.confirm(found.is_empty()).await?;
        Ok(found.iter().filter_map(|hex| hex.parse().ok()).collect())
    }

    /// The length of a blob that is whole.
    async fn manifest(&self, digest: Digest) -> Result<Option<usize>> {
        let at = self.manifest_place(digest);
        let record = self.ask(cmd("GET").arg(&at.key)).await?;
        let record = Option::<Vec<u8>>::from_redis_value(record).map_err(|_| unfit())?;
        self.core.confirm(record.is_none()).await?;
        let Some(record) = record else { return Ok(None) };
        match self.core.known().await?.seal.open(&at, &record) {
            Some(content) => decode(content, &at.key).map(Some),
            None => {
                self.core.alarm(&at.key);
                Ok(None)
            }
        }
    }

    async fn ask(&self, command: &mut Cmd) -> Result<Value> {
        let answers = self.core.link.send(Channel::Blobs, &[command.take()]).await?;
        Ok(answers.into_iter().next().unwrap_or(Value::Nil))
    }

    fn blob_list(&self) -> String {
        self.names().of(&["blobs"])
    }

    fn manifest_place(&self, digest: Digest) -> At {
        At::key(self.names().blob(digest, "m"))
    }

    fn piece(&self, digest: Digest, n: usize) -> String {
        self.names().blob(digest, &n.to_string())
    }
}

fn unfit() -> StoreError {
    StoreError::Corrupt("redis answers a look at a blob with something else".into())
}
