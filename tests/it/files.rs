//! Files of guests: assets out of a module's bundle, `/tmp`, and guests and bundles that try to get more than that.

use std::io::{Cursor, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::toml::{route, tier};
use crate::support::{Gateway, Response, c_guest, c_source, eventually, wat};

const PAGE: &str = "<p>hello</p>\n";

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, *content).expect("it is in memory");
    }
    archive.into_inner().expect("it is in memory")
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, content) in files {
        archive.start_file(*path, zip::write::SimpleFileOptions::default()).expect("it is in memory");
        archive.write_all(content).expect("it is in memory");
    }
    archive.finish().expect("it is in memory").into_inner()
}

fn site() -> Vec<u8> {
    tar_of(&[("page.html", PAGE.as_bytes()), ("sub/deep.txt", b"deep")])
}

fn upload(gw: &Gateway, key: &str, name: &str, wasm: &[u8], assets: &[u8]) -> Response {
    let form = Form::default().field("name", name).field("activate", "true").file("wasm", wasm).file("assets", assets);
    gw.request("POST", "/api/wasm/upload").key(key).form(form.end()).send()
}

fn run(gw: &Gateway, key: &str, module: &str, args: &[&str]) -> Response {
    gw.request("POST", "/api/wasm/execute").key(key).json(&json!({"module": module, "args": args})).send()
}

/// A gateway that has `files.c` with the site as `acme/files`.
fn with_files(config: &str) -> (Gateway, String) {
    let gw = Gateway::start(&api::config(config));
    let key = gw.key();
    upload(&gw, &key, "files", &c_guest("files"), &site()).expect(201);
    (gw, key)
}

#[track_caller]
fn output(doc: &Value) -> &str {
    assert_eq!(doc["exit_code"], 0, "{doc}");
    doc["output"].as_str().unwrap_or_else(|| panic!("no output: {doc}"))
}

#[test]
fn a_module_finds_its_assets_from_either_archive() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let files: [(&str, &[u8]); 2] = [("page.html", PAGE.as_bytes()), ("sub/deep.txt", b"deep")];
    for (name, archive) in [("tarred", tar_of(&files)), ("zipped", zip_of(&files))] {
        let doc = upload(&gw, &key, name, &c_guest("files"), &archive).expect(201).json();
        assert_eq!((&doc["assets"]["files"], &doc["assets"]["bytes"]), (&json!(2), &json!(17)), "{doc}");
        let listed = run(&gw, &key, name, &["list", "/"]).expect(200).json();
        assert_eq!(output(&listed), "/page.html 13\n/sub/\n/sub/deep.txt 4\n/tmp/\n", "{name}");
        for path in ["/page.html", "page.html", "./sub/../page.html", "/tmp/../page.html"] {
            assert_eq!(output(&run(&gw, &key, name, &["cat", path]).expect(200).json()), PAGE, "{path}");
        }
        let shown = gw.get(&format!("/api/wasm/modules/{name}")).key(&key).send().expect(200).json();
        assert_eq!(shown["assets"], doc["assets"]);
        assert_eq!(shown["versions"][0]["assets"], doc["assets"]);
    }
    let bare = gw.request("POST", "/api/wasm/execute").key(&key);
    let form = Form::default().file("wasm", &c_guest("files")).field("args", "list /").end();
    assert_eq!(output(&bare.form(form).send().expect(200).json()), "/tmp/\n", "an inline module has none");
}

#[test]
fn files_in_tmp_do_what_a_c_program_expects() {
    let (gw, key) = with_files("");
    let doc = run(&gw, &key, "files", &["roundtrip"]).expect(200).json();
    let expected = "mkdir: 0\nfiles 12\nftruncate: 0\nappend: 1\nhello!\nrename: 0\n/tmp/d/\n/tmp/b 6\nunlink: 0\n\
        read what is unlinked: 6\nrmdir: 0\nremoved 1000\n";
    assert_eq!(output(&doc), expected);
    let again = run(&gw, &key, "files", &["roundtrip"]).expect(200).json();
    assert_eq!(doc["fuel"], again["fuel"], "fuel is deterministic");
}

#[test]
fn what_must_fail_says_why() {
    let (gw, key) = with_files("");
    let doc = run(&gw, &key, "files", &["errors"]).expect(200).json();
    let expected = "\
open absent: No such file or directory
open in absent: No such file or directory
open below a file: Not a directory
open file/: Not a directory
create excl: File exists
write a folder: Is a directory
file as folder: Not a directory
mkdir there: File exists
mkdir over file: File exists
rmdir full: Directory not empty
rmdir file: Not a directory
rmdir /tmp: Resource busy
unlink folder: Is a directory
unlink absent: No such file or directory
rename into itself: Invalid argument
rename folder over file: Not a directory
rename file over folder: Is a directory
rename folder over full: Directory not empty
rename /tmp: Resource busy
rename onto /tmp: Resource busy
asset write: Read-only file system
asset truncate: Read-only file system
asset create: Read-only file system
asset mkdir: Read-only file system
asset unlink: Read-only file system
asset rmdir: Read-only file system
asset rename: Read-only file system
rename over asset: Read-only file system
asset ftruncate: Capabilities insufficient
long name: Filename too long
read a folder: Is a directory
read what is write-only: Bad file descriptor
write what is read-only: Bad file descriptor
seek before the start: Invalid argument
link: Capabilities insufficient
readlink: Invalid argument
closed: Bad file descriptor
/tmp/d/
/tmp/d/e/
/tmp/f 1
/tmp/h/
";
    assert_eq!(output(&doc), expected);
}

#[test]
fn no_path_and_no_number_leads_out() {
    let (gw, key) = with_files("");
    let doc = run(&gw, &key, "files", &["tricks"]).expect(200).json();
    let expected = "\
/etc/passwd: Capabilities insufficient
..: Capabilities insufficient
../etc/passwd: Capabilities insufficient
tmp/../../etc/passwd: Capabilities insufficient
/: Capabilities insufficient
: No such file or directory
tmp/./../page.html: done
dir: done
out of dir: Capabilities insufficient
more than the folder passes on: Capabilities insufficient
what it passes on: done
what it may not: Capabilities insufficient
seek without the right: Capabilities insufficient
more rights: Capabilities insufficient
nul: Illegal byte sequence
pwrite at 2^63: Invalid argument
pwrite at 2^63-1: No space left on device
pwrite at 2^62: No space left on device
set_size 2^62: No space left on device
set_size 2^64-1: Invalid argument
allocate 2^64-1: File too large
seek 2^63-1: done
seek on: Invalid argument
write there: No space left on device
size 0
readdir: done
from 0: some
readdir: done
from 1: some
readdir: done
from 2: some
readdir: done
from 3: some
readdir: done
from 4: some
readdir: done
from 5: none
readdir: done
from -1: none
readdir: done
from -1: none
renumber over root: done
renumber to nowhere: Bad file descriptor
prestat: Bad file descriptor
open below a file: Not a directory
";
    assert_eq!(output(&doc), expected);
    run(&gw, &key, "files", &["readdir-wild"]).problem(502, "handler-trap");
}

#[test]
fn what_a_guest_keeps_in_files_is_bounded() {
    let small = tier("small", "limits.files = \"1MiB\"\n");
    let gw = Gateway::start(&api::config(&small));
    let key = gw.key_of("small");
    upload(&gw, &key, "files", &c_guest("files"), &site()).expect(201);
    let said = |what: &str| {
        let doc = run(&gw, &key, "files", &[what]).expect(200).json();
        output(&doc).to_owned()
    };
    let filled = said("fill");
    let (bytes, rest) = filled.split_once(':').expect("a number");
    let bytes: u64 = bytes.parse().expect("a number");
    assert!((900_000..=1 << 20).contains(&bytes), "{filled}");
    assert_eq!(rest, " No space left on device\nanother: No space left on device\nafter it is gone: 0\n");
    let many = said("many");
    let (count, rest) = many.split_once(':').expect("a number");
    assert!((1_000..3_000).contains(&count.parse().expect("a number")), "{many}");
    assert_eq!(rest, " No space left on device\n");
    assert_eq!(said("descriptors"), "1020: No file descriptors available\n");
    // With what the highest tiers may keep it takes longer, not more.
    let rich = gw.key();
    upload(&gw, &rich, "files", &c_guest("files"), &site());
    let deep = run(&gw, &rich, "files", &["deep"]).expect(200).json();
    assert_eq!(output(&deep), "deep\n");
    assert_eq!(gw.metric("wasm_memory_usage_bytes", &[]), 0.0, "what was reserved is given back");
}

#[test]
fn every_run_begins_with_an_empty_tmp() {
    let (gw, key) = with_files("");
    for _ in 0..5 {
        let doc = run(&gw, &key, "files", &["leave"]).expect(200).json();
        assert_eq!(output(&doc), "left: 0\n");
    }
}

#[test]
fn work_on_files_ends_at_the_deadline() {
    let quick = tier("quick", "limits.wall = \"300ms\"\n");
    let gw = Gateway::start(&api::config(&quick));
    let key = gw.key_of("quick");
    upload(&gw, &key, "files", &c_guest("files"), &site()).expect(201);
    for what in ["write", "stat", "truncate", "open"] {
        run(&gw, &key, "files", &["busy", what]).problem(504, "handler-timeout");
    }
    assert_eq!(output(&run(&gw, &key, "files", &["cat", "/page.html"]).expect(200).json()), PAGE);
}

#[test]
fn hostile_bundles_are_refused_and_leave_nothing() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let wasm = wat("(module (func (export \"run\") (result i32) (i32.const 1)))");
    let zeros = vec![0u8; 101 << 20];
    let named = |path: &str| {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(0);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, std::io::empty()).expect("it is in memory");
        archive.into_inner().expect("it is in memory")
    };
    let link = {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_link(&mut header, "passwd", "/etc/passwd").expect("it is in memory");
        archive.into_inner().expect("it is in memory")
    };
    // A directory of entries that are not there.
    let declares_millions = {
        let mut archive = vec![b'P', b'K', 5, 6];
        archive.extend_from_slice(&[0, 0, 0, 0, 0xFF, 0xFE, 0xFF, 0xFE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        archive
    };
    let whole = zip_of(&[("a", b"a")]);
    for (what, archive, says) in [
        ("a zip bomb", zip_of(&[("zeros", &zeros)]), "more than"),
        ("a link", link, "`passwd` is no plain file"),
        ("a way up", named("../x"), "`../x`"),
        ("an absolute path", named("/etc/x"), "`/etc/x`"),
        ("a folder of the run", named("tmp/x"), "`tmp`"),
        ("the same twice", tar_of(&[("a", b"1"), ("a", b"2")]), "`a` comes twice"),
        ("cut off", whole[..whole.len() - 3].to_vec(), ""),
        ("declared entries", declares_millions, ""),
        ("something else", b"hello".to_vec(), "no zip and no tar"),
        ("nothing", Vec::new(), "no zip and no tar"),
    ] {
        let doc = upload(&gw, &key, "bad", &wasm, &archive).problem(422, "bad-bundle");
        let detail = doc["detail"].as_str().unwrap_or_default();
        assert!(detail.starts_with("`assets`: ") && detail.contains(says), "{what}: {detail}");
    }
    let form = Form::default().file("wasm", &wasm).file("assets", &named("../x")).end();
    gw.request("POST", "/api/wasm/validate").key(&key).form(form).send().problem(422, "bad-bundle");
    gw.get("/api/wasm/modules/bad").key(&key).send().problem(404, "not-found");
    let stored = std::fs::read_dir(gw.dir.path().join("data/modules")).expect("a folder").count();
    assert_eq!(stored, 0, "nothing is stored");
    upload(&gw, &key, "good", &wasm, &whole).expect(201);
}

#[test]
fn a_bundle_counts_with_its_module() {
    let small = tier("small", "module_size = \"1MiB\"\n");
    let gw = Gateway::start(&api::config(&small));
    let key = gw.key_of("small");
    let wasm = wat("(module (func (export \"run\") (result i32) (i32.const 1)))");
    let most = (1 << 20) - wasm.len();
    let content = vec![b'x'; most + 1];
    upload(&gw, &key, "full", &wasm, &zip_of(&[("x", &content[..most])])).expect(201);
    upload(&gw, &key, "over", &wasm, &zip_of(&[("x", &content)])).problem(422, "bad-bundle");
}

/// Its archives keep the inspection busy; another owner's upload has its turn meanwhile.
#[test]
fn an_owner_with_slow_uploads_leaves_turns_to_others() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let other = gw.new_key(&NewKey { owner: "other", ..NewKey::default() }).text;
    let wasm = wat("(module (func (export \"run\")))");
    let folder = "d/".repeat(30);
    let paths: Vec<_> = (0..9_000).map(|n| format!("{folder}{n}")).collect();
    let slow = zip_of(&paths.iter().map(|path| (path.as_str(), &[0; 9 << 10][..])).collect::<Vec<_>>());
    let form = Form::default().file("wasm", &wasm).file("assets", &slow).end();
    let (answers, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Whatever becomes of the others.
                    let answer = gw.request("POST", "/api/wasm/validate").key(&key).form(form.clone()).try_send();
                    let good = answer.is_ok_and(|answer| answer.status == 200);
                    answers.fetch_add(usize::from(good), Ordering::Relaxed);
                }
            });
        }
        let uploads = catch_unwind(AssertUnwindSafe(|| {
            eventually("they have begun", || answers.load(Ordering::Relaxed) > 0);
            for n in 0..5 {
                upload(&gw, &other, &format!("m{n}"), &wasm, &site()).expect(201);
            }
        }));
        done.store(true, Ordering::Relaxed);
        uploads
    })
    .unwrap_or_else(|failed| resume_unwind(failed));
}

#[test]
fn what_is_stored_of_a_bundle_is_its_archive() {
    let gw = Gateway::start(&api::config(&tier("small", "quotas = []\n")));
    let key = gw.key_of("small");
    let (wasm, archive) = (wat("(module (func (export \"run\")))"), tar_of(&[("x", b"x")]));
    let needs = (wasm.len() + archive.len()) as u64;
    let bound = |bytes: u64| {
        gw.admin("PUT", "/api/tiers/small").json(&json!({"module_storage_bytes": bytes})).send().expect(200);
    };
    bound(needs - 1);
    let doc = upload(&gw, &key, "m", &wasm, &archive).problem(402, "tier-required");
    assert_eq!(doc["needs_tier"], "free", "{doc}");
    assert!(doc["detail"].as_str().is_some_and(|d| d.contains("module_storage") && d.contains("`small`")), "{doc}");
    bound(needs);
    let stored = upload(&gw, &key, "m", &wasm, &archive).expect(201).json();
    assert_eq!(stored["assets"]["archive_bytes"], json!(archive.len()), "{stored}");
    upload(&gw, &key, "m", &wasm, &tar_of(&[("y", b"")])).problem(402, "tier-required");
}

#[test]
fn versions_differ_by_their_files_and_take_them_along() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    let wasm = c_guest("files");
    let page = |text: &str| tar_of(&[("page.html", text.as_bytes())]);
    let (one, two) = (page("one"), page("two"));
    let first = upload(&gw, &key, "site", &wasm, &one).expect(201).json();
    assert_eq!(upload(&gw, &key, "site", &wasm, &one).expect(200).json()["version"], 1, "the same again");
    assert_eq!(upload(&gw, &key, "site", &wasm, &two).expect(201).json()["version"], 2);
    let form = Form::default().field("name", "site").file("wasm", &wasm).end();
    let bare = gw.request("POST", "/api/wasm/upload").key(&key).form(form).send().expect(201).json();
    assert_eq!((&bare["version"], &bare["assets"]), (&json!(3), &Value::Null));
    upload(&gw, &key, "other", &wasm, &one).expect(201);

    let gw = gw.restart(&config);
    let cat = |gw: &Gateway, module: &str| {
        output(&run(gw, &key, module, &["cat", "/page.html"]).expect(200).json()).to_owned()
    };
    assert_eq!(
        [cat(&gw, "site@1"), cat(&gw, "site@2"), cat(&gw, "site@3")],
        ["one", "two", "/page.html: No such file or directory\n"]
    );
    let bundle = |gw: &Gateway, doc: &Value| {
        let digest = doc["assets"]["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
        gw.dir.path().join(format!("data/modules/{digest}.bundle"))
    };
    let file = bundle(&gw, &first);
    let delete = |gw: &Gateway, module: &str| {
        gw.request("DELETE", &format!("/api/wasm/modules/{module}")).key(&key).send().expect(204);
    };
    delete(&gw, "site@1");
    assert!(file.exists(), "`other` still has it");
    delete(&gw, "other");
    assert!(!file.exists(), "nobody has it any more");
    assert_eq!(cat(&gw, "site@2"), "two");

    // Damaged on disk: never unpacked, and said so.
    let gw = gw.restart(&config);
    let shown = gw.get("/api/wasm/modules/site@2").key(&key).send().expect(200).json();
    let file = bundle(&gw, &shown);
    let mut bytes = std::fs::read(&file).expect("it is stored");
    bytes[600] ^= 1;
    std::fs::write(&file, &bytes).expect("it is ours");
    run(&gw, &key, "site@2", &["cat", "/page.html"]).problem(500, "handler-not-loadable");
    assert!(gw.log().contains("the stored bundle is damaged"), "{}", gw.log());
    bytes[600] ^= 1;
    std::fs::write(&file, &bytes).expect("it is ours");
    assert_eq!(cat(&gw, "site@2"), "two");
}

#[test]
fn routes_serve_assets() {
    let handler =
        route("page", "match.path_prefix = \"/page\"\ntarget.handler = { module = \"acme/page\" }\nauth = \"none\"");
    let gw = Gateway::start(&api::config(&handler));
    let key = gw.key();
    let wasm = c_source("examples/cgi-page/page.c");
    let push = |assets: &[u8]| {
        let form = Form::default().field("name", "page").field("abi", "cgi").field("activate", "true");
        let form = form.file("wasm", &wasm).file("assets", assets).end();
        gw.request("POST", "/api/wasm/upload").key(&key).form(form).send().expect(201);
    };
    for text in ["first", "second"] {
        push(&tar_of(&[("page.html", format!("<h1>{text} {{{{path}}}}</h1>").as_bytes())]));
        for _ in 0..3 {
            let response = gw.get("/page/x").send().expect(200);
            assert_eq!(response.text(), format!("<h1>{text} /x</h1>"));
            assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
        }
    }
}

/// Answers with `page.html`, and with 200 and the error number of opening `/tmp` as its status.
const HTTP_WASM: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "http_handler" "write_body" (func $body (param i32 i32 i32)))
  (import "http_handler" "set_status_code" (func $status (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "page.html") (data (i32.const 80) "tmp")
  (func $at (param $path i32) (param $len i32) (result i32)
    (call $open (i32.const 3) (i32.const 0) (local.get $path) (local.get $len) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
  (func (export "handle_request") (result i64)
    (if (call $at (i32.const 64) (i32.const 9)) (then unreachable))
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 4096))
    (drop (call $read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $body (i32.const 1) (i32.const 1024) (i32.load (i32.const 8)))
    (call $status (i32.add (i32.const 200) (call $at (i32.const 80) (i32.const 3))))
    (i64.const 0))
  (func (export "handle_response") (param i32 i32)))"#;

#[test]
fn a_living_vm_has_assets_and_no_tmp() {
    let handler =
        route("page", "match.path_prefix = \"/\"\ntarget.handler = { module = \"acme/vm\" }\nauth = \"none\"");
    let gw = Gateway::start(&format!("{}\n{handler}", api::config("")));
    let key = gw.key();
    upload(&gw, &key, "vm", &wat(HTTP_WASM), &site()).expect(201);
    for _ in 0..50 {
        // ENOENT is 44.
        assert_eq!(gw.get("/").send().expect(244).text(), PAGE);
    }
    // Each request leaves a descriptor open, of which a VM has no more than others.
    let failed = (0..2_000).filter(|_| gw.get("/").send().status == 502).count();
    assert!((1..20).contains(&failed), "a VM that ran out of descriptors ends, and the next one begins: {failed}");
}

#[test]
fn the_command_line_takes_a_folder_or_an_archive() {
    let (gw, _) = with_files("");
    let dir = tempfile::tempdir().expect("a folder");
    let module = dir.path().join("site.wasm");
    std::fs::write(&module, c_guest("files")).expect("the folder is ours");
    let folder = dir.path().join("assets");
    std::fs::create_dir_all(folder.join("sub")).expect("the folder is ours");
    std::fs::write(folder.join("page.html"), PAGE).expect("the folder is ours");
    std::fs::write(folder.join("sub/deep.txt"), "deep").expect("the folder is ours");
    let wasmgate = |args: &[&str]| {
        let mut command = std::process::Command::new(crate::support::gateway::binary());
        command.args(args).env("WASMGATE_ADMIN", format!("http://{}", gw.admin)).env("WASMGATE_TOKEN", &gw.admin_token);
        let output = command.output().expect("it runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (module, folder) = (module.to_str().expect("plain"), folder.to_str().expect("plain"));
    let listed = "/page.html 13\n/sub/\n/sub/deep.txt 4\n/tmp/\n";
    assert_eq!(wasmgate(&["exec", module, "--assets", folder, "--arg", "list", "--arg", "/"]), (true, listed.into()));
    let push = ["module", "push", module, "--owner", "acme", "--assets", folder];
    let (ok, said) = wasmgate(&push);
    assert!(ok && said.starts_with("acme/site@1 command"), "{said}");
    let (ok, said) = wasmgate(&push);
    assert!(ok && said.starts_with("acme/site@1 command"), "the same files are the same version: {said}");
    let key = gw.key();
    assert_eq!(output(&run(&gw, &key, "site", &["list", "/"]).expect(200).json()), listed);
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("assets/link")).expect("the folder is ours");
    let (ok, said) = wasmgate(&push);
    assert!(!ok && said.contains("`link` is no plain file or folder"), "{said}");
}
