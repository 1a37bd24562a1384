//! Modules: a name owned by somebody, and immutable versions of it, each identified by its digest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Digest, LimitsChange, Name, OwnerId, Timestamp};

/// How the gateway talks with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Abi {
    /// WASI preview1 `_start`, standard input to standard output.
    Command,
    /// A WASI command with CGI meta-variables and RFC 3875 output.
    Cgi,
    /// No WASI: an exported function with scalar arguments.
    Core,
    /// The http-wasm HTTP handler ABI.
    HttpWasm,
    /// Proxy-Wasm 0.2.1, 0.2.0 and 0.1.0.
    ProxyWasm,
}

impl Abi {
    pub const ALL: [Abi; 5] = [Abi::Command, Abi::Cgi, Abi::Core, Abi::HttpWasm, Abi::ProxyWasm];

    pub fn as_str(self) -> &'static str {
        match self {
            Abi::Command => "command",
            Abi::Cgi => "cgi",
            Abi::Core => "core",
            Abi::HttpWasm => "http-wasm",
            Abi::ProxyWasm => "proxy-wasm",
        }
    }

    /// Its guests see the requests of a route in phases, and live on between them.
    pub fn is_filter(self) -> bool {
        matches!(self, Abi::HttpWasm | Abi::ProxyWasm)
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Abi {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Abi::ALL
            .into_iter()
            .find(|a| a.as_str() == s)
            .ok_or_else(|| format!("`{s}` is not an ABI: use `command`, `cgi`, `core`, `http-wasm` or `proxy-wasm`"))
    }
}

/// When a handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The execute endpoint, or a handler that answers.
    Execute,
    Request,
    Response,
}

impl Phase {
    pub const COUNT: usize = 3;

    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Execute => "execute",
            Phase::Request => "request",
            Phase::Response => "response",
        }
    }
}

/// What a module imports and exports, and what it declares; read from its bytes, nothing run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModuleShape {
    pub imports: Vec<ImportShape>,
    pub exports: Vec<ExportShape>,
    /// Declared minimum of its memory, in bytes; 0 without one.
    pub memory_min_bytes: u64,
    pub memory_max_bytes: Option<u64>,
    pub has_start: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImportShape {
    pub module: String,
    pub name: String,
    /// `(i32, i32) -> i64` for functions, else `memory`, `table`, `global`.
    pub ty: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExportShape {
    pub name: String,
    pub ty: String,
}

impl ModuleShape {
    pub fn imports_from(&self, module: &str) -> bool {
        self.imports.iter().any(|i| i.module == module)
    }

    pub fn imports_function(&self, module: &str, name: &str) -> bool {
        self.imports.iter().any(|i| i.module == module && i.name == name)
    }

    pub fn export(&self, name: &str) -> Option<&ExportShape> {
        self.exports.iter().find(|e| e.name == name)
    }
}

/// The files that came with a version: an archive, and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Bundle {
    /// Of the archive.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Of the files, unpacked.
    pub bytes: u64,
    pub files: u64,
    /// Of the archive; 0 in records of earlier releases.
    #[serde(default)]
    pub archive_bytes: u64,
}

/// One immutable version of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleVersion {
    /// 1, 2, 3 ... in order of upload.
    pub version: u32,
    pub digest: Digest,
    pub abi: Abi,
    pub size_bytes: u64,
    pub uploaded_at: Timestamp,
    pub shape: ModuleShape,
    /// Versions of earlier releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<Bundle>,
}

/// What makes a version the same as another one: its bytes, how they are run, its files.
pub type Identity = (Digest, Abi, Option<Digest>);

impl ModuleVersion {
    pub fn identity(&self) -> Identity {
        (self.digest, self.abi, self.assets.map(|bundle| bundle.digest))
    }

    /// What counts for a tier's size of a module.
    pub fn total_bytes(&self) -> u64 {
        self.size_bytes.saturating_add(self.assets.map_or(0, |bundle| bundle.bytes))
    }

    /// What counts for a tier's storage.
    pub fn stored_bytes(&self) -> u64 {
        self.size_bytes.saturating_add(self.assets.map_or(0, |bundle| bundle.archive_bytes))
    }

    /// Everything that is stored for it.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        std::iter::once(self.digest).chain(self.assets.map(|bundle| bundle.digest))
    }
}

/// A module: its name, and which of its versions the name means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    pub id: String,
    pub owner: OwnerId,
    pub name: Name,
    pub description: String,
    /// Anyone with the execute scope may run it.
    pub public: bool,
    pub active: u32,
    /// The version that was active before; `None` too when it has been deleted.
    pub previous: Option<u32>,
    pub versions: Vec<ModuleVersion>,
    /// Of its own, under those of whoever runs it.
    pub limits: LimitsChange,
    pub executions: u64,
    pub last_executed: Option<Timestamp>,
}

impl Module {
    pub fn select(&self, selector: Selector) -> Option<&ModuleVersion> {
        let wanted = match selector {
            Selector::Active => self.active,
            Selector::Version(v) => v,
        };
        self.versions.iter().find(|v| v.version == wanted)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    Active,
    Version(u32),
}

/// `[owner/]name[@version]`; without an owner it is one's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleRef {
    pub owner: Option<OwnerId>,
    pub name: Name,
    pub selector: Selector,
}

impl FromStr for ModuleRef {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (path, selector) = match s.split_once('@') {
            None => (s, Selector::Active),
            Some((path, version)) => match version.parse::<u32>() {
                Ok(v) if v > 0 => (path, Selector::Version(v)),
                _ => return Err(format!("`{s}`: the version behind `@` is a number from 1")),
            },
        };
        let (owner, name) = match path.split_once('/') {
            None => (None, path),
            Some((owner, name)) => (Some(owner.parse::<Name>().map_err(|e| e.to_string())?), name),
        };
        Ok(Self { owner, name: name.parse::<Name>().map_err(|e| e.to_string())?, selector })
    }
}

impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(owner) = &self.owner {
            write!(f, "{owner}/")?;
        }
        write!(f, "{}", self.name)?;
        if let Selector::Version(v) = self.selector {
            write!(f, "@{v}")?;
        }
        Ok(())
    }
}

text_in_records!(ModuleRef);
