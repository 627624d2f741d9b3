//! The programs as users run them.
use std::{
    fs,
    io::Read,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const RNICD: &str = env!("CARGO_BIN_EXE_rnicd");
const RNICCTL: &str = env!("CARGO_BIN_EXE_rnicctl");
const PATIENCE: Duration = Duration::from_secs(20);

fn config(dir: &Path) -> std::path::PathBuf {
    let at = dir.display();
    let text = format!(
        "version: 1\n\
         control: {{socket: {at}/rnicd.sock, admin_socket: {at}/admin.sock}}\n\
         cores: {{idle: {{policy: sleep}}}}\n\
         ports:\n\
         - {{name: rnic0, device: {{ring: {{peer: rnic1}}}}, addresses: [10.0.0.1/24]}}\n\
         - {{name: rnic1, device: {{ring: {{peer: rnic0}}}}, addresses: [10.0.0.2/24]}}\n"
    );
    let path = dir.join("rnicd.yaml");
    fs::write(&path, text).unwrap();
    path
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env_remove("RNIC_ADMIN_SOCKET")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Kills what a failed test leaves.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path, notify: &Path) -> Self {
        let child = Command::new(RNICD)
            .arg("--config")
            .arg(config(dir))
            .env("NOTIFY_SOCKET", notify)
            .stderr(Stdio::piped())
            .spawn();
        Daemon(child.unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "rnicd does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until systemd would be told `wanted`.
fn told(socket: &UnixDatagram, wanted: &str) {
    let mut buffer = [0; 512];
    loop {
        let len = socket.recv(&mut buffer).expect("rnicd said nothing more");
        if text(&buffer[..len]).contains(wanted) {
            return;
        }
    }
}

#[test]
fn rnicd_tells_systemd_serves_rnicctl_and_stops_on_sigterm_and_sigint() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = TempDir::new().unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut daemon = Daemon::start(dir.path(), &dir.path().join("notify"));
        told(&notify, "READY=1");
        let admin = dir.path().join("admin.sock");
        let admin = admin.to_str().unwrap();
        let status = run(RNICCTL, &["status", "--json", "--socket", admin]);
        assert!(status.status.success(), "{}", text(&status.stderr));
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let mut keys: Vec<_> = status.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let wanted = [
            "ahs",
            "bytes_awaiting_grace",
            "bytes_awaiting_grace_bound",
            "clients",
            "cores",
            "cqs",
            "destructions_in_line",
            "mapped_bytes_awaiting_grace",
            "mapped_bytes_awaiting_grace_bound",
            "mrs",
            "mws",
            "oldest_grace_us",
            "pds",
            "ports",
            "qps",
            "srqs",
            "xrcds",
        ];
        assert_eq!(keys, wanted);
        assert_eq!(
            (status["clients"].as_u64(), status["ports"][1]["name"].as_str()),
            (Some(0), Some("rnic1"))
        );
        let keys = [
            "id",
            "state",
            "epoch",
            "busy_cycles",
            "idle_cycles",
            "stalled_ms",
            "stalls",
        ];
        for key in keys {
            assert!(!status["cores"][0][key].is_null(), "{key}");
        }
        for (command, wanted) in [("status", "rnic0"), ("dev", "GID 0"), ("qp", "LAST-CAUSE")] {
            let output = run(RNICCTL, &[command, "--socket", admin]);
            assert!(
                text(&output.stdout).contains(wanted),
                "{command}: {}",
                text(&output.stdout)
            );
        }
        daemon.signal(signal);
        told(&notify, "STOPPING=1");
        assert_eq!(daemon.wait(), Some(0));
        assert!(!Path::new(admin).exists(), "the socket stayed");
        let none = run(RNICCTL, &["status", "--socket", admin]);
        assert_eq!(none.status.code(), Some(1));
        assert!(
            text(&none.stderr).contains("no rnicd answers"),
            "{}",
            text(&none.stderr)
        );
    }
}

#[test]
fn a_second_rnicd_on_the_same_sockets_says_so_and_the_first_goes_on() {
    let dir = TempDir::new().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut first = Daemon::start(dir.path(), &dir.path().join("notify"));
    told(&notify, "READY=1");
    let mut second = Daemon::start(dir.path(), &dir.path().join("nobody"));
    assert_eq!(second.wait(), Some(1));
    let mut error = String::new();
    second
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert!(error.contains("another rnicd serves this socket"), "{error}");
    assert!(dir.path().join("rnicd.sock").exists());
    first.signal(Signal::TERM);
    assert_eq!(first.wait(), Some(0));
}

#[test]
fn check_tells_right_from_wrong_by_its_exit_code() {
    let dir = TempDir::new().unwrap();
    let good = config(dir.path());
    let good = good.to_str().unwrap();
    assert_eq!(run(RNICD, &["--check", good]).status.code(), Some(0));
    let bad = dir.path().join("bad.yaml");
    fs::write(
        &bad,
        fs::read_to_string(good)
            .unwrap()
            .replace("policy: sleep", "policy: slep"),
    )
    .unwrap();
    for option in ["--check", "--config"] {
        let output = run(RNICD, &[option, bad.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{option}");
        assert!(text(&output.stderr).contains("slep"), "{}", text(&output.stderr));
    }
    assert_eq!(run(RNICD, &["--check", "/nowhere"]).status.code(), Some(2));
    assert_eq!(run(RNICD, &[]).status.code(), Some(2));
}

#[test]
fn schema_and_samples_are_printed_and_the_laptop_sample_passes_its_check() {
    let schema = run(RNICD, &["--print-schema"]);
    assert!(
        serde_json::from_slice::<serde_json::Value>(&schema.stdout)
            .unwrap()
            .is_object()
    );
    let sample = run(RNICD, &["--print-sample", "laptop"]);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("laptop.yaml");
    fs::write(&path, &sample.stdout).unwrap();
    let check = run(RNICD, &["--check", path.to_str().unwrap()]);
    assert!(check.status.success(), "{}", text(&check.stderr));
    let list = run(RNICD, &["--print-sample"]);
    assert!(list.status.success() && text(&list.stdout).contains("sriov-vf"));
    assert_eq!(run(RNICD, &["--print-sample", "none"]).status.code(), Some(2));
}
