//! Random creation, use, failure and destruction of everything by many clients at once, threads and processes, some
//! of which are killed, while ports are removed and added. Clients work below the library, on the rings themselves, and account for every work request,
//! every event and every byte; what they gave back they poison, and look whether anybody writes to it.
//!
//! `rnic-stress run` does so for a time; `rnic-stress pairs` makes and destroys so many QPs and watches the
//! daemon's memory. Both start a daemon of their own (`RNIC_BIN_DIR` says which, if not the one built beside it).
#![forbid(unsafe_code)]

mod daemon;
mod ends;
mod grave;
mod library;
mod link;
mod loss;
mod objects;
mod options;
mod pairs;
mod process;
mod qp;
mod run;
mod session;
mod shared;
mod traffic;
mod unplug;
mod worker;
mod xrc;

use std::process::ExitCode;

use clap::Parser;

use options::{Cli, Role};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.role {
        Role::Run(options) => run::run(options),
        Role::Pairs(options) => pairs::run(options),
        Role::Client(options) => run::client(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rnic-stress: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
