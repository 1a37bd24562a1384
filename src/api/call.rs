//! What an execution is asked to do: the three body forms, read into one [`Call`].
//!
//! Invariant: the older service's names (`wasm_file`, `input_data`) are known here alone.

use axum::body::Body;
use base64::Engine as _;
use bytes::Bytes;
use http::request::Parts;
use serde::Deserialize;

use super::access::Actor;
use super::body::{self, bad, parse_json, parse_object};
use super::bounded::{BoundedMap, BoundedVec, Word};
use super::multipart::{self, Field};
use super::openapi::{Binary, Wasm};
use super::{Api, incoming};
use crate::domain::{Abi, ModuleRef, Rejection, Tier};

/// Arguments and environment of one run: how many of each, and how many bytes together.
const MAX_WORDS: usize = 256;
const MAX_WORD_BYTES: usize = 64 << 10;
/// A form's or a query's text fields.
const TEXT: u64 = 64 << 10;

type Args = BoundedVec<Word, MAX_WORDS>;
type Variables = BoundedMap<MAX_WORDS>;

pub(super) struct Call {
    pub source: Source,
    pub input: Bytes,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Export to call.
    pub function: Option<String>,
    pub abi: Option<Abi>,
}

pub(super) enum Source {
    Stored(ModuleRef),
    Inline(Bytes),
}

/// The JSON form, and one item of a batch.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecuteRequest {
    /// `[owner/]name[@version]`; or give `wasm_base64`.
    #[schema(value_type = Option<String>)]
    module: Option<ModuleRef>,
    /// The module itself.
    wasm_base64: Option<String>,
    /// Export to call; default: `_start`, `main` or `run`.
    function: Option<String>,
    /// The same as `function`.
    entry: Option<String>,
    /// Strings or numbers: `argv[1..]` of a command, arguments of a core function.
    #[serde(default)]
    #[schema(value_type = Vec<Word>, max_items = 256)]
    args: Args,
    /// Standard input.
    #[serde(alias = "input_data")]
    input: Option<String>,
    input_base64: Option<String>,
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    env: Variables,
    abi: Option<Abi>,
}

/// The form. The older service's `wasm_file` and `input_data` are taken as well.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "a schema only: the form is read field by field")]
pub(super) struct ExecuteForm {
    /// `[owner/]name[@version]`; or give `wasm`.
    #[schema(nullable = false)]
    module: Option<String>,
    /// The module itself.
    #[schema(nullable = false)]
    wasm: Option<Wasm>,
    /// Standard input.
    #[schema(nullable = false)]
    input: Option<Binary>,
    /// Words between white space, or a JSON array of strings and numbers.
    #[schema(nullable = false)]
    args: Option<String>,
    /// Lines `NAME=value`, or a JSON object of strings.
    #[schema(nullable = false)]
    env: Option<String>,
    /// Export to call; default: `_start`, `main` or `run`.
    #[schema(nullable = false)]
    function: Option<String>,
    /// The same as `function`.
    #[schema(nullable = false)]
    entry: Option<String>,
    #[schema(nullable = false)]
    abi: Option<Abi>,
}

/// What the query may hold beside a raw module.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExecuteQuery {
    /// `1` or `true`: a failed run's backtrace and error output, for the module's owner.
    pub trace: Option<String>,
    /// Whose modules bare names mean (admin).
    #[param(value_type = Option<String>)]
    pub owner: Option<crate::domain::OwnerId>,
    /// Refused with a message that says where it belongs.
    #[param(ignore)]
    module: Option<String>,
    /// Standard input (raw body form only, as all that follow).
    input: Option<String>,
    input_base64: Option<String>,
    /// A JSON array, or words.
    args: Option<String>,
    /// A JSON object, or lines `NAME=value`.
    env: Option<String>,
    function: Option<String>,
    entry: Option<String>,
    #[param(inline)]
    abi: Option<Abi>,
}

impl ExecuteQuery {
    /// Parameters that only the raw form has.
    fn stray(&self) -> Option<&'static str> {
        let given = [
            ("input", self.input.is_some()),
            ("input_base64", self.input_base64.is_some()),
            ("args", self.args.is_some()),
            ("env", self.env.is_some()),
            ("function", self.function.is_some()),
            ("entry", self.entry.is_some()),
            ("abi", self.abi.is_some()),
        ];
        given.into_iter().find(|(_, there)| *there).map(|(name, _)| name)
    }
}

/// Reads the body in whichever form its media type says.
pub(super) async fn read(
    api: &Api,
    actor: &Actor,
    parts: &Parts,
    query: ExecuteQuery,
    body: Body,
) -> Result<Call, Rejection> {
    let tier = actor.tier(api)?;
    let media = body::media_type(&parts.headers);
    if query.module.is_some() {
        return Err(Rejection::BadRequest(
            "`module`: a stored module is named in the body, by `application/json` or `multipart/form-data`".into(),
        ));
    }
    if media != "application/wasm"
        && let Some(name) = query.stray()
    {
        return Err(Rejection::BadRequest(format!("`{name}`: belongs in the body")));
    }
    match media.as_str() {
        "multipart/form-data" => from_form(api, &tier, parts, body).await,
        "application/json" => {
            let bytes = json_body(api, &tier, parts, body).await?;
            parse_object::<ExecuteRequest>(&bytes)?.into_call(api, &tier)
        }
        "application/wasm" => {
            let over = |size| incoming::module_too_large(api, &tier, size);
            let wasm = body::gather(api, &parts.headers, body, tier.module_bytes, over).await?;
            query.into_call(wasm, &tier)
        }
        _ => Err(Rejection::UnsupportedMediaType(
            "`Content-Type`: use `multipart/form-data`, `application/json` or `application/wasm`".into(),
        )),
    }
}

/// A JSON body of as much as a module and an input in base64 have, which makes four bytes of three.
pub(super) async fn json_body(api: &Api, tier: &Tier, parts: &Parts, body: Body) -> Result<Bytes, Rejection> {
    let limit = (tier.module_bytes + tier.limits.input_bytes) / 3 * 4 + 2 * TEXT;
    let over = |_| {
        Rejection::TooLarge(format!(
            "the body is over the {limit} bytes that the tier `{}` allows (by `module_size` and `limits.input`)",
            tier.name
        ))
    };
    body::gather(api, &parts.headers, body, limit, over).await
}

fn input_too_large(tier: &Tier) -> Rejection {
    let (limit, name) = (tier.limits.input_bytes, &tier.name);
    Rejection::TooLarge(format!("`input`: is over the {limit} bytes that the tier `{name}` allows (`limits.input`)"))
}

async fn from_form(api: &Api, tier: &Tier, parts: &Parts, body: Body) -> Result<Call, Rejection> {
    let fields = [
        incoming::wasm_field(tier),
        Field { name: "input", alias: Some("input_data"), limit: tier.limits.input_bytes },
        Field::text("module", 256),
        Field::text("args", TEXT),
        Field::text("env", TEXT),
        Field::text("entry", 1024),
        Field::text("function", 1024),
        Field::text("abi", 32),
    ];
    let over = |name, limit| match name {
        "wasm" => incoming::module_too_large(api, tier, body::content_length(&parts.headers)),
        "input" => input_too_large(tier),
        name => Rejection::TooLarge(format!("`{name}`: is longer than {limit} bytes")),
    };
    let mut form = multipart::read(api, &parts.headers, body, &fields, over).await?;
    let source = source(form.parsed("module")?, form.take("wasm"), "wasm")?;
    let call = Call {
        source,
        input: form.take("input").unwrap_or_default(),
        args: form.text("args")?.map_or(Ok(Vec::new()), |text| words(&text))?,
        env: form.text("env")?.map_or(Ok(Vec::new()), |text| variables(&text))?,
        function: one_name(form.text("function")?, form.text("entry")?)?,
        abi: form.parsed("abi")?,
    };
    call.checked()
}

impl ExecuteQuery {
    fn into_call(self, wasm: Bytes, tier: &Tier) -> Result<Call, Rejection> {
        let call = Call {
            source: source(None, Some(wasm), "body")?,
            input: input(self.input, self.input_base64, tier)?,
            args: self.args.map_or(Ok(Vec::new()), |text| words(&text))?,
            env: self.env.map_or(Ok(Vec::new()), |text| variables(&text))?,
            function: one_name(self.function, self.entry)?,
            abi: self.abi,
        };
        call.checked()
    }
}

impl ExecuteRequest {
    pub(super) fn into_call(self, api: &Api, tier: &Tier) -> Result<Call, Rejection> {
        let wasm = self.wasm_base64.map(|text| from_base64("wasm_base64", &text)).transpose()?;
        if wasm.as_ref().is_some_and(|w| w.len() as u64 > tier.module_bytes) {
            return Err(incoming::module_too_large(api, tier, wasm.map(|w| w.len() as u64)));
        }
        let call = Call {
            source: source(self.module, wasm, "wasm_base64")?,
            input: input(self.input, self.input_base64, tier)?,
            args: texts(self.args),
            env: self.env.0.into_iter().collect(),
            function: one_name(self.function, self.entry)?,
            abi: self.abi,
        };
        call.checked()
    }
}

impl Call {
    fn checked(self) -> Result<Self, Rejection> {
        for (field, n) in [("args", self.args.len()), ("env", self.env.len())] {
            if n > MAX_WORDS {
                return Err(Rejection::BadRequest(format!("`{field}`: more than {MAX_WORDS}")));
            }
        }
        let variables = self.env.iter().map(|(name, value)| name.len() + value.len());
        let bytes: usize = self.args.iter().map(String::len).chain(variables).sum();
        if bytes > MAX_WORD_BYTES {
            return Err(Rejection::BadRequest(format!("`args`, `env`: more than {MAX_WORD_BYTES} bytes together")));
        }
        if self.args.iter().any(|a| a.contains('\0')) {
            return Err(Rejection::BadRequest("`args`: has a NUL".into()));
        }
        match self.env.iter().find(|(n, v)| n.is_empty() || n.contains(['=', '\0']) || v.contains('\0')) {
            Some((name, _)) => Err(Rejection::BadRequest(format!(
                "`env`: `{name}` is not the name of a variable, or its value has a NUL"
            ))),
            None => Ok(self),
        }
    }
}

fn source(module: Option<ModuleRef>, wasm: Option<Bytes>, field: &str) -> Result<Source, Rejection> {
    match (module, wasm) {
        (Some(_), Some(_)) => Err(Rejection::BadRequest(format!("`module`, `{field}`: give one of them"))),
        (None, None) => Err(Rejection::BadRequest(format!("`module`, `{field}`: give one of them"))),
        (Some(module), None) => Ok(Source::Stored(module)),
        (None, Some(wasm)) if wasm.is_empty() => Err(Rejection::BadRequest(format!("`{field}`: is empty"))),
        (None, Some(wasm)) => Ok(Source::Inline(wasm)),
    }
}

fn input(text: Option<String>, base64: Option<String>, tier: &Tier) -> Result<Bytes, Rejection> {
    let input = match (text, base64) {
        (Some(_), Some(_)) => return Err(Rejection::BadRequest("`input`, `input_base64`: give one of them".into())),
        (Some(text), None) => text.into(),
        (None, Some(text)) => from_base64("input_base64", &text)?,
        (None, None) => Bytes::new(),
    };
    if input.len() as u64 > tier.limits.input_bytes { Err(input_too_large(tier)) } else { Ok(input) }
}

fn from_base64(field: &str, text: &str) -> Result<Bytes, Rejection> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map(Bytes::from).map_err(|e| bad(field, format_args!("is not base64: {e}")))
}

fn one_name(function: Option<String>, entry: Option<String>) -> Result<Option<String>, Rejection> {
    match (function, entry) {
        (Some(a), Some(b)) if a != b => Err(Rejection::BadRequest("`function`, `entry`: give one of them".into())),
        (a, b) => Ok(a.or(b)),
    }
}

/// A JSON array of strings and numbers, or words between white space.
fn words(text: &str) -> Result<Vec<String>, Rejection> {
    if !text.trim_start().starts_with('[') {
        return Ok(text.split_whitespace().map(str::to_owned).collect());
    }
    parse_field("args", text).map(texts)
}

fn texts(BoundedVec(words): Args) -> Vec<String> {
    words.into_iter().map(|Word(text)| text).collect()
}

fn parse_field<T: serde::de::DeserializeOwned>(field: &str, text: &str) -> Result<T, Rejection> {
    parse_json(text.as_bytes()).map_err(|e| bad(field, e.detail()))
}

/// A JSON object of strings, or lines `NAME=value`.
fn variables(text: &str) -> Result<Vec<(String, String)>, Rejection> {
    if text.trim_start().starts_with('{') {
        return parse_field("env", text).map(|BoundedMap(map): Variables| map.into_iter().collect());
    }
    if text.trim_start().starts_with('[') {
        return Err(bad("env", "is an array; send a JSON object, or lines `NAME=value`"));
    }
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| match line.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.to_owned())),
            None => Err(bad("env", format_args!("`{line}` has no `=`; send lines `NAME=value`, or a JSON object"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_words_or_json() {
        assert_eq!(words(" 2  x ").unwrap(), ["2", "x"]);
        assert_eq!(words(r#"["a b", 3, 1.5]"#).unwrap(), ["a b", "3", "1.5"]);
        assert!(words(r#"[{}]"#).unwrap_err().detail().starts_with("`args`: [0]: "));
    }

    #[test]
    fn env_is_lines_or_json() {
        let expected = vec![("A".to_owned(), "1=2".to_owned()), ("B".to_owned(), String::new())];
        assert_eq!(variables("A=1=2\n\nB=\n").unwrap(), expected);
        assert_eq!(variables(r#"{"A":"1=2","B":""}"#).unwrap(), expected);
        assert!(variables("nonsense").unwrap_err().detail().contains("`env`"));
    }
}
