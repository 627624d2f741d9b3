//! A running `rnicd`.
use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::command::program;
use crate::{Counts, Namespace, Setup, Status, poll_until};

/// How long an appliance may take to start or to end. Far more than it needs: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `rnicd` with a folder of its own. Killed on drop; its log is shown when the test fails.
#[derive(Debug)]
pub struct Appliance {
    child: Child,
    dir: TempDir,
    name: &'static str,
    /// How its captures are to be checked.
    trace: rnic_trace::Options,
    /// Rules that its captures need not keep.
    excepted: Vec<rnic_trace::Rule>,
}

impl Appliance {
    /// Starts one on this configuration and waits until it says READY.
    ///
    /// # Panics
    /// When it does not come up, with its log.
    pub fn start(setup: &Setup) -> Appliance {
        Self::start_at("rnicd", setup, None)
    }

    /// As [`Appliance::start`], in a network namespace; `name` is for messages.
    pub fn start_in(name: &'static str, namespace: &Namespace, setup: &Setup) -> Appliance {
        Self::start_at(name, setup, Some(namespace))
    }

    fn start_at(name: &'static str, setup: &Setup, namespace: Option<&Namespace>) -> Appliance {
        let dir = TempDir::with_prefix("rnic-test-").expect("a temporary folder");
        let config = dir.path().join("rnicd.yaml");
        std::fs::write(&config, setup.yaml(dir.path())).expect("writing the configuration");
        let mut appliance = Self::start_on(name, dir, &config, namespace);
        appliance.trace.damage = setup.has("faults:");
        if setup.has("tx:") {
            // Captures show frames behind the faults.
            appliance.trace.near = rnic_trace::Near::Nobody;
        }
        appliance
    }

    /// Starts one on a configuration file that leaves its sockets to `$RNIC_SOCKET` and `$RNIC_ADMIN_SOCKET`, as the
    /// sample for laptops.
    ///
    /// # Panics
    /// As [`Appliance::start`].
    pub fn start_file(config: &Path) -> Appliance {
        let dir = TempDir::with_prefix("rnic-test-").expect("a temporary folder");
        Self::start_on("rnicd", dir, config, None)
    }

    fn start_on(name: &'static str, dir: TempDir, config: &Path, namespace: Option<&Namespace>) -> Appliance {
        let notify_path = dir.path().join("notify");
        let notify = UnixDatagram::bind(&notify_path).expect("a socket for sd_notify");
        notify
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        let log = File::create(dir.path().join("rnicd.log")).expect("a log file");
        let daemon = program("rnicd");
        let mut command = match namespace {
            None => Command::new(&daemon),
            Some(namespace) => {
                let mut ip = Command::new("ip");
                // It replaces itself by the daemon: the process number is the daemon's.
                ip.args(["netns", "exec", namespace.name()]).arg(&daemon);
                ip
            }
        };
        command
            .arg("--config")
            .arg(config)
            .env("NOTIFY_SOCKET", &notify_path)
            .env("RNIC_SOCKET", dir.path().join("rnicd.sock"))
            .env("RNIC_ADMIN_SOCKET", dir.path().join("admin.sock"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", daemon.display()));
        let mut appliance = Appliance {
            child,
            dir,
            name,
            trace: rnic_trace::Options::default(),
            excepted: Vec::new(),
        };
        appliance.wait_ready(&notify);
        appliance
    }

    fn wait_ready(&mut self, notify: &UnixDatagram) {
        let mut message = [0; 4096];
        let ready = poll_until(PATIENCE, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended before it was ready: {status}", self.name);
            }
            let len = notify.recv(&mut message).ok()?;
            String::from_utf8_lossy(&message[..len])
                .lines()
                .any(|line| line == "READY=1")
                .then_some(())
        });
        assert!(ready.is_some(), "{} did not become ready", self.name);
        assert!(self.socket().exists(), "{} is ready without a socket", self.name);
    }

    /// Its captures need not keep a rule that supposes peers a test does not have.
    pub fn except(&mut self, rule: rnic_trace::Rule) {
        self.excepted.push(rule);
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("rnicd.sock")
    }

    /// Where `rnicctl` connects.
    fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Descriptors it has open.
    ///
    /// # Panics
    /// When it has ended.
    pub fn descriptors(&self) -> usize {
        let dir = format!("/proc/{}/fd", self.pid());
        std::fs::read_dir(dir).expect("the daemon lives").count()
    }

    /// Opens a device from the test's own process.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub fn open(&self, device: &str) -> rnic::Context {
        rnic::Context::open(self.socket(), device).expect("the daemon opens the device")
    }

    /// Runs `rnicctl` against it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn ctl(&self, args: &[&str]) -> Output {
        Command::new(program("rnicctl"))
            .args(args)
            .env("RNIC_ADMIN_SOCKET", self.admin_socket())
            .env("RNIC_SOCKET", self.socket())
            .stdin(Stdio::null())
            .output()
            .expect("rnicctl can be started")
    }

    /// What `rnicctl` prints with `--json`.
    ///
    /// # Panics
    /// When it fails, or prints no JSON.
    pub fn ctl_json(&self, args: &[&str]) -> serde_json::Value {
        let args = [args, &["--json"]].concat();
        let output = self.ctl(&args);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "rnicctl {}: {text}{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("rnicctl {}: {e}: {text}", args.join(" ")))
    }

    /// Its status.
    ///
    /// # Panics
    /// When `rnicctl` fails or a stable key is missing.
    pub fn status(&self) -> Status {
        let json = self.ctl_json(&["status"]);
        serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("status: {e}: {json}"))
    }

    /// What there is now.
    pub fn counts(&self) -> Counts {
        self.status().counts
    }

    /// The counter `name` in the status, all cores and ports together: the sum of every number under a key of
    /// that name.
    pub fn counter(&self, name: &str) -> u64 {
        sum(&self.ctl_json(&["status"]), name)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.dir.path().join("rnicd.log")) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Makes sure that it is alive and answers.
    ///
    /// # Panics
    /// When it has ended.
    pub fn assert_alive(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("{} has ended: {status}", self.name);
        }
        self.status();
    }

    /// Ends it as an operator does and makes sure that it says goodbye with 0.
    ///
    /// # Panics
    /// When it does not end, or with another status.
    pub fn stop(mut self) {
        self.assert_alive();
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{} ended with {status}", self.name);
        assert!(!self.socket().exists(), "{} left its socket behind", self.name);
    }

    /// Checks what every port has captured against the transport's rules, as far as frames of this appliance are
    /// concerned: others may have been made by a test to provoke it.
    fn check_captures(&self) {
        let files = std::fs::read_dir(self.dir.path()).expect("the folder is there");
        for path in files.map(|file| file.expect("a file").path()) {
            if path.extension().is_none_or(|extension| extension != "pcapng") {
                continue;
            }
            match rnic_trace::check_file(&path, &self.trace) {
                Ok(report) => {
                    let ours: Vec<_> = report
                        .violations
                        .iter()
                        .filter(|v| v.ours && !self.excepted.contains(&v.rule))
                        .collect();
                    let first: Vec<_> = ours.iter().take(10).map(ToString::to_string).collect();
                    let (name, count) = (self.name, ours.len());
                    assert!(
                        ours.is_empty(),
                        "{name} violates rules {count} times, {}:\n{}",
                        path.display(),
                        first.join("\n")
                    );
                }
                // Nothing came by before it was killed.
                Err(_) if std::fs::metadata(&path).is_ok_and(|file| file.len() < 1024) => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the child has not been waited for");
    }

    fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        poll_until(PATIENCE, || child.try_wait().ok().flatten())
            .unwrap_or_else(|| panic!("{} does not end on SIGTERM", self.name))
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(120)..].join("\n");
            eprintln!("--- the end of the log of {} ---\n{tail}\n---", self.name);
        } else {
            self.check_captures();
        }
    }
}

/// Sum of all numbers under a key of this name, however deep.
fn sum(value: &serde_json::Value, name: &str) -> u64 {
    match value {
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(key, value)| match value.as_u64() {
                Some(number) if key == name => number,
                _ => sum(value, name),
            })
            .sum(),
        serde_json::Value::Array(list) => list.iter().map(|value| sum(value, name)).sum(),
        _ => 0,
    }
}
