//! What tests do through the admin API: keys, modules, configuration.
//!
//! Invariant: the paths and fields of the admin API occur here and in `admin.rs` alone.

use serde_json::{Value, json};

use super::{Gateway, Request, Response};

/// What a new key may do; the rest has defaults.
pub struct NewKey<'a> {
    pub owner: &'a str,
    pub tier: &'a str,
    pub scopes: &'a [&'a str],
    pub expires_at: Option<String>,
}

impl Default for NewKey<'_> {
    fn default() -> Self {
        Self {
            owner: "acme",
            tier: "enterprise",
            scopes: &["proxy", "execute", "modules", "usage", "keys"],
            expires_at: None,
        }
    }
}

/// A key as the admin API showed it, once.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: String,
    pub text: String,
}

impl Gateway {
    /// A request to the admin API with the admin token.
    pub fn admin(&self, method: &str, target: &str) -> Request {
        Request::new(self.admin, method, target).header("Authorization", format!("Bearer {}", self.admin_token))
    }

    #[track_caller]
    pub fn new_key(&self, new: &NewKey) -> Key {
        let mut body = json!({"owner": new.owner, "tier": new.tier, "scopes": new.scopes});
        if let Some(at) = &new.expires_at {
            body["expires_at"] = json!(at);
        }
        let made = self.admin("POST", "/api/auth/keys").json(&body).send().expect(201).json();
        let text = |name: &str| made[name].as_str().unwrap_or_else(|| panic!("no `{name}`: {made}")).to_owned();
        Key { id: text("id"), text: text("key") }
    }

    /// A key with every tenant scope and no quotas.
    #[track_caller]
    pub fn key(&self) -> String {
        self.new_key(&NewKey::default()).text
    }

    /// As `key`, of a tier.
    #[track_caller]
    pub fn key_of(&self, tier: &str) -> String {
        self.new_key(&NewKey { tier, ..NewKey::default() }).text
    }

    #[track_caller]
    pub fn revoke(&self, key: &Key) {
        let response = self.admin("DELETE", &format!("/api/auth/keys/{}", key.id)).send();
        assert!(matches!(response.status, 200 | 204), "{response}");
    }

    /// Uploads a version for `owner/name` and gives the answer's document.
    #[track_caller]
    pub fn upload(&self, module: &str, abi: &str, wasm: &[u8]) -> Value {
        let response = self.try_upload(module, abi, wasm);
        assert!(matches!(response.status, 200 | 201), "{response}");
        response.json()
    }

    pub fn try_upload(&self, module: &str, abi: &str, wasm: &[u8]) -> Response {
        let (owner, name) = module.split_once('/').expect("`owner/name`");
        let target = format!("/api/wasm/modules/{name}?owner={owner}&abi={abi}&activate=true");
        self.admin("PUT", &target).header("Content-Type", "application/wasm").body(wasm).send()
    }

    /// The value of a metric's first sample whose labels hold all of `labels`; 0 when there is none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin("GET", "/metrics").send().expect(200).text();
        let samples = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let found = samples.filter(|l| labels.iter().all(|label| l.contains(label))).find_map(|l| l.rsplit(' ').next());
        found.map_or(0.0, |value| value.parse().expect("samples are numbers"))
    }
}
