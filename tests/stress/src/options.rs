//! What is asked for on the command line.
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Random creation, use, failure and destruction by many clients; everything that is seen is checked.
#[derive(Debug, Parser)]
#[command(name = "rnic-stress", version)]
pub struct Cli {
    #[command(subcommand)]
    pub role: Role,
}

#[derive(Debug, Subcommand)]
pub enum Role {
    /// Starts a daemon and clients that do everything at random.
    Run(Run),
    /// Starts a daemon and clients that make and destroy QPs, so many pairs, and watches memory.
    Pairs(Pairs),
    /// One client process of `run`; ends with its standard input.
    #[command(hide = true)]
    Client(Client),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// How long, in seconds.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Clients that are threads of this process.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Clients that are processes, some of which are killed.
    #[arg(long, default_value_t = 3)]
    pub processes: usize,
    /// Clients that use the library, and as many that share receive queues.
    #[arg(long, default_value_t = 1)]
    pub library: usize,
    /// Milliseconds between two kills, on average; 0 kills nobody.
    #[arg(long, default_value_t = 700)]
    pub kill_every: u64,
    /// Milliseconds between two removals of a pair of ports, on average; 0 removes none.
    #[arg(long, default_value_t = 600)]
    pub unplug_every: u64,
    /// Poll cores.
    #[arg(long, default_value_t = 2)]
    pub cores: u32,
    /// What a poll core does without work: spin, pause or sleep.
    #[arg(long, default_value = "sleep")]
    pub idle: String,
    /// Leaves out the clients that are not part of it and must not notice.
    #[arg(long)]
    pub no_bystanders: bool,
    /// Lets the daemon's memory grow, as that of a sanitized one does.
    #[arg(long)]
    pub sanitized: bool,
    /// Decides all choices; printed, so that a run can be repeated.
    #[arg(long, env = "RNIC_STRESS_SEED")]
    pub seed: Option<u64>,
}

impl Run {
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Options of `pairs`.
#[derive(Debug, Args)]
pub struct Pairs {
    /// QPs to make, bring to RTS and destroy.
    #[arg(long, default_value_t = 1_000_000)]
    pub count: u64,
    /// Clients.
    #[arg(long, default_value_t = 4)]
    pub clients: usize,
    /// Poll cores.
    #[arg(long, default_value_t = 2)]
    pub cores: u32,
    /// What a poll core does without work: spin, pause or sleep.
    #[arg(long, default_value = "sleep")]
    pub idle: String,
    /// Decides all choices.
    #[arg(long, env = "RNIC_STRESS_SEED")]
    pub seed: Option<u64>,
}

/// Options of a client process.
#[derive(Debug, Args)]
pub struct Client {
    /// The daemon's socket.
    #[arg(long)]
    pub socket: PathBuf,
    /// Decides its choices.
    #[arg(long, value_delimiter = ',')]
    pub seed: Vec<u64>,
}

/// The seed asked for, or one of the clock's.
pub fn seed(given: Option<u64>) -> u64 {
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64 & 0xFFFF_FFFF)
    })
}
