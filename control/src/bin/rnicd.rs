//! `rnicd`: the RDMA NIC as a daemon.
//!
//! Exit codes: 0 stopped as asked, or the check found nothing wrong; 1 could not start, or a poll core failed;
//! 2 the configuration or the command line is wrong.
#![forbid(unsafe_code)]

use std::{os::fd::OwnedFd, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{ArgGroup, Parser};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rnic_config::{Config, ConfigError, LogFormat, samples};
use rnic_control::daemon;
use tracing_subscriber::EnvFilter;

// In debug builds every allocation is counted and one on a poll core aborts.
#[cfg(debug_assertions)]
#[global_allocator]
static ALLOCATOR: rnic_engine::nonblocking::CheckedAllocator = rnic_engine::nonblocking::CheckedAllocator;

/// A software RDMA NIC (RoCE v2) over DPDK ports.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 stopped as asked, or nothing wrong found; 1 could not start, or a \
    poll core failed; 2 wrong configuration or command line."
)]
#[command(group = ArgGroup::new("what").required(true))]
struct Arguments {
    /// Run with this configuration.
    #[arg(long, value_name = "FILE", group = "what")]
    config: Option<PathBuf>,
    /// Check a configuration and say what is wrong.
    #[arg(long, value_name = "FILE", group = "what")]
    check: Option<PathBuf>,
    /// Print the JSON schema of configurations.
    #[arg(long, group = "what")]
    print_schema: bool,
    /// Print a sample configuration; without a name, list them.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "", group = "what")]
    print_sample: Option<String>,
    /// Least severe messages to log, in place of the configuration's: error, warn, info, debug, trace, or a
    /// filter such as `info,rnic_control=debug`.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

const WRONG: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_schema {
        print!("{}", rnic_config::print_schema());
        return ExitCode::SUCCESS;
    }
    if let Some(name) = &arguments.print_sample {
        return print_sample(name);
    }
    let (path, check_only) = match (&arguments.config, &arguments.check) {
        (Some(path), _) => (path, false),
        (None, Some(path)) => (path, true),
        (None, None) => return ExitCode::from(WRONG),
    };
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    for warning in config.warnings() {
        eprintln!("{warning}");
    }
    if check_only {
        return ExitCode::SUCCESS;
    }
    match run(config, arguments.log.as_deref()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rnicd: {error:#}");
            match error.downcast_ref::<daemon::DaemonError>() {
                Some(daemon::DaemonError::Config(_)) => ExitCode::from(WRONG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn wrong(error: &ConfigError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(WRONG)
}

fn print_sample(name: &str) -> ExitCode {
    if let Some(text) = samples::get(name) {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    if !name.is_empty() {
        eprintln!("rnicd: there is no sample `{name}`; samples are:");
    }
    for sample in samples::ALL {
        println!("{:12} {}", sample.name, sample.purpose);
    }
    if name.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WRONG)
    }
}

fn run(config: Config, log: Option<&str>) -> anyhow::Result<ExitCode> {
    start_log(&config, log)?;
    // Before any thread is made, so that all of them leave the signals to the event loop.
    let stop = stop_signals().context("signals")?;
    let control = daemon::start(config, stop)?;
    tracing::info!("ready");
    let thread = std::thread::Builder::new()
        .name("rnic-control".into())
        .spawn(move || control.run());
    let healthy = thread.context("starting the control thread")?.join();
    match healthy {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => anyhow::bail!("a poll core has failed"),
        Err(_) => anyhow::bail!("the control thread has failed"),
    }
}

/// Readable once SIGTERM or SIGINT has come.
fn stop_signals() -> nix::Result<OwnedFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Into::into)
}

fn start_log(config: &Config, level: Option<&str>) -> anyhow::Result<()> {
    let level = level.unwrap_or(config.log.level.as_str());
    let filter = EnvFilter::try_new(level).with_context(|| format!("--log {level}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
