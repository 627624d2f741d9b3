//! One process writes to another with a key that is not valid, and both show what they are told.
//!
//! Server: `access_error`; client: `access_error SERVER`. Both need a running rnicd. With `--json` the server
//! prints the event of its QP as one line.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rnic::{Access, ConnectOptions, Context, EventObject, QpConfig, RemoteMr, exchange};

/// Provokes a remote access error and shows the event it raises.
#[derive(Parser)]
struct Args {
    /// Host where the other side runs without this argument; without it, be that side.
    server: Option<String>,
    /// TCP port on which the two sides find each other.
    #[arg(short, long, default_value_t = 18515)]
    port: u16,
    /// Device to use.
    #[arg(short, long, default_value = "rnic0")]
    device: String,
    /// Socket of the daemon.
    #[arg(long, default_value_os_t = rnic::default_socket())]
    socket: PathBuf,
    /// Print the event as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("access_error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let context = Context::open(&args.socket, &args.device)?;
    let pd = context.alloc_pd()?;
    let cq = context.create_cq(16)?;
    let qp = pd.create_qp(QpConfig::new(&cq, &cq))?;
    let buffer = pd.alloc_mr(4096, Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
    let options = ConnectOptions::default();
    let mut peer = match &args.server {
        Some(host) => exchange::connect((host.as_str(), args.port), Some(Duration::from_secs(10)))?,
        None => exchange::listen(("::", args.port))?.accept()?,
    };
    let (endpoint, mut remote) = peer.swap(&(qp.endpoint(&options)?, buffer.remote()))?;
    qp.connect(&endpoint, &options)?;
    peer.barrier()?;

    if args.server.is_some() {
        let RemoteMr { rkey, .. } = &mut remote;
        *rkey ^= 1;
        qp.post(|batch| {
            batch.write(buffer.slice(..64), remote.at(0)).signaled();
        })?;
        for completion in cq.wait_vec(1, Some(Duration::from_secs(10)))? {
            println!(
                "the WRITE completed with {:?}{}",
                completion.status,
                because(completion.cause)
            );
        }
        peer.barrier()?;
        return Ok(());
    }
    let event = context.next_event(Some(Duration::from_secs(10)))?;
    let event = event.context("no event within 10 s")?;
    ensure!(
        event.object == EventObject::Qp(qp.qpn()),
        "an event of another object: {event}"
    );
    let cause = event.cause.context("the event has no cause")?;
    if args.json {
        let line = serde_json::json!({
            "kind": event.kind.name(),
            "qpn": qp.qpn(),
            "cause": cause.check_name(),
            "psn": cause.psn,
            "opcode": cause.opcode,
            "syndrome": cause.syndrome,
        });
        println!("{line}");
    } else {
        println!("{event}");
    }
    drop(event);
    peer.barrier()?;
    Ok(())
}

fn because(cause: Option<rnic::Cause>) -> String {
    cause.map(|cause| format!(": {cause}")).unwrap_or_default()
}
