//! The servers that settings name, and connections to them, whatever kind they are.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, ProtocolVersion, RedisError, RedisResult, ServerErrorKind, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

use super::{RedisSettings, Server, Tls};
use crate::store::{Result, StoreError};

/// Calls that wait to be written to a connection; further ones wait as well, but not in its memory.
const QUEUED: usize = 512;
/// Nodes of a cluster that point to each other.
pub const REDIRECTIONS: usize = 4;
/// Other protocols have other shapes of answers.
const PROTOCOL: ProtocolVersion = ProtocolVersion::RESP2;

#[derive(Clone)]
pub enum Servers {
    Single(Box<Client>),
    /// With the nodes that are named.
    Cluster(Box<ClusterClient>, Vec<ConnectionInfo>),
    /// Which server is the primary is asked for each connection.
    Sentinel(Arc<Mutex<SentinelClient>>),
}

#[derive(Clone)]
pub enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Servers {
    pub fn new(settings: &RedisSettings) -> Result<Self> {
        let certificates = settings.tls.clone().map(|Tls { authorities, certificate }| TlsCertificates {
            client_tls: certificate.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: authorities,
        });
        match &settings.server {
            Server::Single(url) => {
                let info = with_login(parse(url)?, settings);
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(info, certificates),
                    None => Client::open(info),
                };
                client.map(|client| Servers::Single(Box::new(client))).map_err(refused)
            }
            Server::Cluster(urls) => {
                let nodes = urls.iter().map(|url| Ok(with_login(parse(url)?, settings))).collect::<Result<Vec<_>>>()?;
                let mut builder = ClusterClient::builder(nodes.clone())
                    // Nodes that are named, and then those that these know: one that is away keeps nobody from the others.
                    .connection_timeout(settings.connect / 3)
                    .response_timeout(settings.response)
                    // What fails is ours to try again, once it is known what failed: not all may be done twice.
                    .retries(0);
                let mut nodes = nodes;
                if let Some(certificates) = certificates {
                    let under_tls = |node| Client::build_with_tls(node, certificates.clone()).map_err(refused);
                    let clients = nodes.into_iter().map(under_tls).collect::<Result<Vec<_>>>()?;
                    nodes = clients.iter().map(|client| client.get_connection_info().clone()).collect();
                    builder = builder.certs(certificates);
                }
                builder.build().map(|client| Servers::Cluster(Box::new(client), nodes)).map_err(refused)
            }
            Server::Sentinel { urls, primary } => sentinel(urls, primary, settings, certificates),
        }
    }

    pub fn is_tls(&self) -> bool {
        let nodes = match self {
            Servers::Single(client) => std::slice::from_ref(client.get_connection_info()),
            Servers::Cluster(_, nodes) => nodes,
            Servers::Sentinel(_) => &[],
        };
        nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }))
    }

    pub fn has_sentinels(&self) -> bool {
        matches!(self, Servers::Sentinel(_))
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self, Servers::Cluster(..))
    }

    /// One of these is the server that has the records, or leads to it.
    pub async fn leading(&self) -> RedisResult<Vec<ConnectionInfo>> {
        Ok(match self {
            Servers::Single(client) => vec![client.get_connection_info().clone()],
            Servers::Cluster(_, nodes) => nodes.clone(),
            Servers::Sentinel(client) => {
                vec![client.lock().await.async_get_client().await?.get_connection_info().clone()]
            }
        })
    }

    pub async fn connect(&self, within: Duration) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(within))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUED);
        match self {
            Servers::Single(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
            }
            Servers::Cluster(client, _) => client.get_async_connection().await.map(Connection::Cluster),
            Servers::Sentinel(client) => {
                let mut client = client.lock().await;
                client.get_async_connection_with_config(&config).await.map(Connection::Single)
            }
        }
    }
}

/// User and password in a URL are for the sentinels, where there are no others for them.
fn sentinel(
    urls: &[String],
    primary: &str,
    settings: &RedisSettings,
    certificates: Option<TlsCertificates>,
) -> Result<Servers> {
    let infos = urls.iter().map(|url| parse(url)).collect::<Result<Vec<_>>>()?;
    let nodes = infos.iter().map(|info| info.addr().clone());
    let mut builder = SentinelClientBuilder::new(nodes, primary, SentinelServerType::Master)
        .map_err(refused)?
        .set_client_to_redis_protocol(PROTOCOL)
        .set_client_to_sentinel_protocol(PROTOCOL);
    if let Some(user) = &settings.username {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &settings.password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(first) = infos.first() {
        let login = first.redis_settings();
        builder = builder.set_client_to_redis_db(login.db());
        if let Some(user) = settings.sentinel_username.as_deref().or(login.username()) {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = settings.sentinel_password.as_deref().or(login.password()) {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if matches!(first.addr(), ConnectionAddr::TcpTls { .. }) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
    }
    if let Some(certificates) = certificates {
        builder = builder.set_client_to_redis_certificates(certificates.clone());
        builder = builder.set_client_to_sentinel_certificates(certificates);
    }
    builder.build().map(|client| Servers::Sentinel(Arc::new(Mutex::new(client)))).map_err(refused)
}

fn parse(url: &str) -> Result<ConnectionInfo> {
    url.into_connection_info().map_err(refused)
}

/// Where they are: addresses, and the database if it is another one than 0.
pub fn place(server: &Server) -> Result<String> {
    let urls = match server {
        Server::Single(url) => std::slice::from_ref(url),
        Server::Cluster(urls) | Server::Sentinel { urls, .. } => urls,
    };
    let shown = |url: &String| {
        let info = parse(url)?;
        Ok(match info.redis_settings().db() {
            0 => format!("`{}`", info.addr()),
            database => format!("`{}/{database}`", info.addr()),
        })
    };
    Ok(urls.iter().map(shown).collect::<Result<Vec<_>>>()?.join(", "))
}

fn with_login(info: ConnectionInfo, settings: &RedisSettings) -> ConnectionInfo {
    let mut login = info.redis_settings().clone().set_protocol(PROTOCOL);
    if let Some(user) = &settings.username {
        login = login.set_username(user);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(password);
    }
    info.set_redis_settings(login)
}

/// The text of a URL may have a password in it, so no error repeats it.
fn refused(e: RedisError) -> StoreError {
    StoreError::Unavailable(format!("the URL of redis: {}", e.category()))
}

impl Connection {
    /// The answers, in order. An error of one is the error of all.
    pub async fn send(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        let connection = match self {
            Connection::Single(connection) => return together(connection, commands).await,
            Connection::Cluster(connection) => connection,
        };
        match together(connection, commands).await {
            // Of a slot that is under way each key is on one node or on the other.
            Err(error) if is_redirection(&error) => {
                let mut answers = Vec::with_capacity(commands.len());
                for command in commands {
                    answers.push(redirected(connection, command).await?);
                }
                Ok(answers)
            }
            sent => sent,
        }
    }
}

async fn together(connection: &mut impl ConnectionLike, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
    if let [one] = commands {
        return connection.req_packed_command(one).await.and_then(Value::extract_error).map(|value| vec![value]);
    }
    let mut all = Pipeline::with_capacity(commands.len());
    for command in commands {
        all.add_command(command.clone());
    }
    all.query_async(connection).await
}

fn is_redirection(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask))
}

/// To the node that it is told to go to: one that has refused it so has done nothing of it.
async fn redirected(connection: &mut ClusterConnection, command: &Cmd) -> RedisResult<Value> {
    let mut sent = connection.req_packed_command(command).await.and_then(Value::extract_error);
    for _ in 0..REDIRECTIONS {
        let Err(error) = &sent else { break };
        let Some((host, port)) = error.redirect_node().and_then(|(node, _)| host_and_port(node)) else { break };
        let node = SingleNodeRoutingInfo::ByAddress { host, port };
        sent = if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) {
            let mut asking = Pipeline::with_capacity(2);
            asking.cmd("ASKING").add_command(command.clone());
            let answers = connection.route_pipeline(asking, 0, 2, node).await;
            answers.and_then(|mut answers| answers.pop().unwrap_or(Value::Nil).extract_error())
        } else {
            let routing = RoutingInfo::SingleNode(node);
            connection.route_command(command.clone(), routing).await.and_then(Value::extract_error)
        };
    }
    match sent {
        Err(error) if is_redirection(&error) => {
            Err((ErrorKind::ClusterConnectionNotFound, "its nodes don't agree on which has the records").into())
        }
        sent => sent,
    }
}

/// Of a node, as redirections name it.
pub fn host_and_port(node: &str) -> Option<(String, u16)> {
    let (host, port) = node.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}
