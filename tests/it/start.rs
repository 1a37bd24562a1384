//! Starting: what is wrong ends the process at once with exit code 2 and names the setting to change.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::gateway::{binary, run_to_end};
use crate::support::toml::open_proxy;
use crate::support::{Gateway, Upstream, try_serve};

/// Ends with exit code 2 and mentions all of `named` on standard error.
#[track_caller]
fn exits_2(output: &Output, named: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    for name in named {
        assert!(errors.contains(name), "`{name}` is not named:\n{errors}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

#[track_caller]
fn refused(config: &str, named: &[&str]) {
    let dir = TempDir::new().expect("a temporary folder");
    exits_2(&try_serve(dir.path(), config), named);
}

#[test]
fn a_taken_port_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("it is bound").to_string();
    refused(&format!("[[server.listeners]]\naddress = \"{addr}\"\n"), &[&addr, "server.listeners"]);
    refused(&format!("[admin]\naddress = \"{addr}\"\n"), &[&addr, "admin.address"]);
}

#[test]
fn an_unusable_data_directory_names_the_setting() {
    let dir = TempDir::new().expect("a temporary folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").expect("the folder is writable");
    refused(&format!("data_dir = {:?}\n", file.join("below")), &["data_dir"]);
    refused(&format!("data_dir = {file:?}\n"), &["data_dir"]);
}

#[test]
fn a_ready_file_without_its_folder_is_refused() {
    let dir = TempDir::new().expect("a temporary folder");
    let config = dir.path().join("wasmgate.toml");
    std::fs::write(
        &config,
        format!(
            "data_dir = {:?}\n[admin]\naddress = \"127.0.0.1:0\"\n[[server.listeners]]\naddress = \"127.0.0.1:0\"\n",
            dir.path().join("data")
        ),
    )
    .expect("writable");
    let mut command = Command::new(binary());
    command.arg("serve").arg("-c").arg(&config).arg("--ready-file").arg(dir.path().join("missing/ready.json"));
    exits_2(&run_to_end(command), &["--ready-file"]);
}

#[test]
fn a_missing_configuration_names_its_path() {
    let mut command = Command::new(binary());
    command.args(["serve", "-c", "/nonexistent/wasmgate.toml"]);
    exits_2(&run_to_end(command), &["/nonexistent/wasmgate.toml"]);
}

#[test]
fn all_errors_of_a_configuration_come_at_once() {
    let config = "[server]\nheader_timout = \"10s\"\ndrain = \"soon\"\n[[routes]]\nname = \"r\"\nmatch.path_prefix = \"/\"\ntarget.upstream = \"nowhere\"\nauth = \"maybe\"\n";
    refused(
        config,
        &[
            "header_timout",
            "header_timeout",
            "drain",
            "soon",
            "routes[0].target.upstream",
            "nowhere",
            "maybe",
            "optional",
        ],
    );
}

#[test]
fn an_admin_listener_in_the_open_without_tls_is_refused() {
    refused("[admin]\naddress = \"0.0.0.0:0\"\n", &["admin.address"]);
}

#[test]
fn a_tls_listener_without_its_files_names_them() {
    refused(
        "[[server.listeners]]\naddress = \"127.0.0.1:0\"\ntls.cert_file = \"no-cert.pem\"\ntls.key_file = \"no-key.pem\"\n",
        &["no-cert.pem"],
    );
}

#[test]
fn secrets_are_made_once_readable_by_the_owner_alone() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let token_file = gw.ready["admin_token_file"].as_str().expect("a path").to_owned();
    let mut secrets = vec![gw.dir.path().join(token_file)];
    secrets.extend(["pepper"].map(|name| gw.dir.path().join("data").join(name)));
    for file in secrets {
        let mode = std::fs::metadata(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    // 256 bits, as hex or base64.
    assert!(gw.admin_token.len() >= 43, "{} characters", gw.admin_token.len());
    let (token, config) = (gw.admin_token.clone(), open_proxy(up.addr, ""));
    assert_eq!(gw.restart(&config).admin_token, token);
}

#[test]
fn the_ready_file_says_who_and_where() {
    let up = Upstream::echo();
    let two = "[[server.listeners]]\naddress = \"127.0.0.1:0\"\n[[server.listeners]]\naddress = \"127.0.0.1:0\"\n";
    let gw = Gateway::start(&(two.to_owned() + &open_proxy(up.addr, "")));
    assert_eq!(gw.ready["pid"], gw.pid());
    assert_eq!(gw.proxies.len(), 2);
    for addr in &gw.proxies {
        crate::support::Request::new(*addr, "GET", "/").send().expect(200);
    }
    assert!(!gw.ready.to_string().contains(&gw.admin_token), "the token's file is named, not its text");
}
