//! Told of changes: a connection of its own on which Redis says which records have changed, whoever changed them.
//!
//! Invariant: between `restored` and `lost` no change goes untold, but for those of the time in which a dead connection is
//! found out: two looks without an answer, [`LOOK`] each.
//!
//! Client-side caching in broadcast mode (Redis, "Client-side caching in Redis"): nothing is remembered there of what was
//! read here, and each change of a key under one of the prefixes comes as a push of RESP3.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::mpsc;

use super::Names;
use super::core::Core;
use super::fault::fault;
use super::keys::hash_of;
use super::servers::{REDIRECTIONS, Servers, host_and_port};
use crate::store::Changes;

/// How often the connection is looked at, and how long its answer may take.
const LOOK: Duration = Duration::from_millis(250);
/// Looks without an answer after which it counts as lost.
const MISSES: u32 = 2;
/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(200);
/// Pushes that wait to be told of; more are as good as a lost connection.
const QUEUED: usize = 65_536;

struct Told {
    connection: MultiplexedConnection,
    pushes: mpsc::Receiver<PushInfo>,
}

/// Until the store is dropped.
pub async fn follow(core: Weak<Core>, changes: Arc<dyn Changes>) {
    let mut first = 0;
    loop {
        let Some((names, (servers, patience))) = core.upgrade().map(|core| (core.names.clone(), core.link.servers()))
        else {
            return;
        };
        match connect(&servers, patience, first, &names).await {
            Ok(told) => {
                changes.restored();
                let why = told.pass_on(&core, &names, &*changes).await;
                changes.lost();
                tracing::warn!(
                    why,
                    "redis does not tell of changes any more; keys are read again before they are believed"
                );
            }
            Err(error) => {
                if let Some(core) = core.upgrade() {
                    let fault = core.link.fault(&error);
                    if fault.is_denied {
                        core.link.tell_denied(&fault.error);
                    }
                    tracing::debug!(error = %fault.error, "no connection to be told of changes on");
                }
                first += 1;
            }
        }
        // Whether that is Redis, or the link alone.
        if let Some(core) = core.upgrade() {
            let _ = core.confirm(true).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// To the server that has the records; of a cluster, any node knows it, and the `first` is asked.
async fn connect(servers: &Servers, patience: Duration, first: usize, names: &Names) -> RedisResult<Told> {
    let nodes = tokio::time::timeout(patience, servers.leading()).await.map_err(|_| nobody())??;
    let mut info = nodes.get(first % nodes.len().max(1)).cloned().ok_or_else(nobody)?;
    for _ in 0..REDIRECTIONS {
        let told = Told::connect(info.clone(), patience, names).await?;
        match look(&mut told.connection.clone(), names).await {
            Ok(_) => return Ok(told),
            Err(error) => match error.redirect_node().and_then(|(node, _)| address(node, info.addr())) {
                Some(address) => info = info.set_addr(address),
                None => return Err(error),
            },
        }
    }
    Err(nobody())
}

/// Whether the connection lives, and leads to where the records are; and the sentinel, so that a loss is seen by nobody's asking.
async fn look(connection: &mut MultiplexedConnection, names: &Names) -> RedisResult<Option<Vec<u8>>> {
    redis::cmd("GET").arg(names.sentinel()).query_async(connection).await
}

fn nobody() -> redis::RedisError {
    redis::RedisError::from((redis::ErrorKind::Client, "no server is known that has the records"))
}

fn address(node: &str, like: &ConnectionAddr) -> Option<ConnectionAddr> {
    let (host, port) = host_and_port(node)?;
    Some(match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    })
}

impl Told {
    async fn connect(info: ConnectionInfo, patience: Duration, names: &Names) -> RedisResult<Told> {
        let (sender, pushes) = mpsc::channel(QUEUED);
        let login = info.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(login))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(LOOK))
            // Without room the receiver is given up: the connection ends, and all is read again.
            .set_push_sender(move |push| sender.try_send(push).map_err(|_| redis::aio::SendError));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in names.followed() {
            track.arg("PREFIX").arg(prefix);
        }
        track.exec_async(&mut connection).await?;
        Ok(Told { connection, pushes })
    }

    /// Until the connection is of no use; why.
    async fn pass_on(mut self, core: &Weak<Core>, names: &Names, changes: &dyn Changes) -> String {
        let mut misses = 0;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connection = self.connection.clone();
        loop {
            let looking = async {
                looks.tick().await;
                let found = look(&mut connection, names).await?;
                if let Some(core) = core.upgrade() {
                    // Of a start without Redis, this is the first that sees the store. What is wrong with it is told there.
                    let _ = core.known().await;
                    let _ = core.saw(found.as_deref());
                }
                RedisResult::Ok(())
            };
            let mut looking = std::pin::pin!(looking);
            let looked = loop {
                tokio::select! {
                    looked = &mut looking => break looked,
                    push = self.pushes.recv() => match push {
                        Some(push) => if !tell(push, names, changes) {
                            return "the connection has ended".into();
                        },
                        None => return "it has told of more than could be taken".into(),
                    },
                }
            };
            match looked {
                Ok(()) => misses = 0,
                Err(error) if error.is_timeout() && misses + 1 < MISSES => misses += 1,
                Err(error) => return fault(&error).error.to_string(),
            }
        }
    }
}

/// `false`: that was the last.
fn tell(PushInfo { kind, data }: PushInfo, names: &Names, changes: &dyn Changes) -> bool {
    match kind {
        PushKind::Invalidate => match data.into_iter().next() {
            Some(Value::Array(keys)) => keys.iter().for_each(|key| tell_key(key, names, changes)),
            // Everything was flushed.
            _ => {
                changes.lost();
                changes.restored();
            }
        },
        PushKind::Disconnection => return false,
        _ => {}
    }
    true
}

fn tell_key(key: &Value, names: &Names, changes: &dyn Changes) {
    let Value::BulkString(key) = key else { return };
    let Ok(key) = std::str::from_utf8(key) else { return };
    match names.followed_key(key) {
        Some(hash) => {
            if let Some(hash) = hash_of(hash) {
                changes.key(&hash);
            }
        }
        None => changes.records(),
    }
}
