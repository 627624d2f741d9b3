//! Client processes.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::command::program;
use crate::probe::Plan;
pub use crate::probe::Report;

/// How long a client may be silent before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client process: `rnic-probe`. Killed on drop.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    name: String,
}

impl Probe {
    fn spawn(name: String, args: &[&str]) -> Probe {
        let mut child = Command::new(program("rnic-probe"))
            .args(args)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("rnic-probe can be started");
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        Probe {
            child,
            stdin,
            lines,
            name,
        }
    }

    /// Two connected clients that carry out `plan`, at the daemons and devices `at`.
    pub fn pair(at: [(&Path, &str); 2], plan: &Plan) -> [Probe; 2] {
        let plan = serde_json::to_string(plan).expect("a plan is plain data");
        let [(server_socket, server_device), (client_socket, client_device)] = at;
        let socket = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let name = |role: &str, device: &str| format!("the {role} at {device}");
        let server = Probe::spawn(
            name("server", server_device),
            &[
                "serve",
                "--socket",
                &socket(server_socket),
                "--device",
                server_device,
            ],
        );
        let address = server.line();
        let client = Probe::spawn(
            name("client", client_device),
            &[
                "run",
                "--socket",
                &socket(client_socket),
                "--device",
                client_device,
                "--peer",
                &address,
                "--plan",
                &plan,
            ],
        );
        [server, client]
    }

    /// Runs `plan` to its end and returns what both saw, server first.
    ///
    /// # Panics
    /// When either fails.
    pub fn run_pair(at: [(&Path, &str); 2], plan: &Plan) -> [Report; 2] {
        Self::pair(at, plan).map(Probe::finish)
    }

    /// The next line it prints.
    fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|e| panic!("{} says nothing: {e}", self.name))
    }

    /// Waits until a round of an endless plan that began after this call has ended, and returns what it has seen
    /// so far.
    ///
    /// # Panics
    /// When it ends or is silent.
    pub fn progress(&mut self) -> Report {
        while self.lines.try_recv().is_ok() {}
        self.report();
        self.report()
    }

    fn report(&self) -> Report {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e}: {line}", self.name))
    }

    /// Tells it, and through it its peer, to end after this round.
    pub fn ask_to_end(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end and returns its last report.
    ///
    /// # Panics
    /// When it fails.
    pub fn finish(mut self) -> Report {
        let mut last = None;
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => last = Some(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(e) => panic!("{} does not end: {e}", self.name),
            }
        }
        let status = self.child.wait().expect("it is our child");
        let last = last.unwrap_or_default();
        assert!(
            status.success(),
            "{} ended with {status}; it last said {last:?}",
            self.name
        );
        serde_json::from_str(&last).unwrap_or_else(|e| panic!("{}: {e}: {last}", self.name))
    }

    /// `kill -9`; returns the moment after which it is surely gone.
    pub fn kill(mut self) -> Instant {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
        Instant::now()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two clients with nothing to do with what a test does, who must not notice it: they move data all the time and
/// check every byte.
#[derive(Debug)]
pub struct Bystanders([Probe; 2]);

impl Bystanders {
    /// Starts them, and waits until they run.
    ///
    /// # Panics
    /// When they cannot run.
    pub fn start(at: [(&Path, &str); 2]) -> Bystanders {
        let plan = Plan {
            endless: true,
            mtus: vec![1024],
            size_max: 9000,
            seed: 77,
            ..Plan::default()
        };
        let mut bystanders = Bystanders(Probe::pair(at, &plan));
        bystanders.check();
        bystanders
    }

    /// Makes sure that they go on: a whole round, after this call.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&mut self) {
        for probe in &mut self.0 {
            probe.progress();
        }
    }

    /// Ends them, and makes sure that they were content to the end.
    ///
    /// # Panics
    /// When they were not.
    pub fn finish(mut self) {
        self.check();
        for probe in &mut self.0 {
            probe.ask_to_end();
        }
        let [server, client] = self.0.map(Probe::finish);
        assert_eq!(server.rounds, client.rounds);
        assert!(server.messages > 0);
    }
}
