//! A table in one process, read by others without that process doing anything: one-sided READs.
//!
//! Server: `kv_read serve`, publishes a table and goes on changing it. Client: `kv_read get SERVER KEY…`.
//!
//! An entry is read while it may be written, so a reader must be able to tell a torn one. Each entry has a
//! version, odd while it is written, and a checksum over version, key and value; a READ moves bytes in no
//! promised order, which is why the version alone would not do.
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use rnic::{Access, Completion, ConnectOptions, Context, MrSlice, Qp, QpConfig, RemoteMr, exchange};

/// Bytes of an entry: version, checksum, key, value.
const ENTRY: usize = 128;
const VALUE: usize = ENTRY - 24;

/// Serves a table to one-sided READs, and reads such a table.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publishes a table and rewrites its entries until the clients are done.
    Serve {
        #[command(flatten)]
        common: Common,
        /// Entries of the table.
        #[arg(long, default_value_t = 1024)]
        entries: u64,
        /// Clients to serve, one after another.
        #[arg(long, default_value_t = 1)]
        clients: u32,
    },
    /// Reads entries of a server's table.
    Get {
        #[command(flatten)]
        common: Common,
        /// Host of the server.
        server: String,
        /// Keys: numbers below the number of entries.
        #[arg(required = true)]
        keys: Vec<u64>,
        /// Times to read each key.
        #[arg(short = 'n', long, default_value_t = 1)]
        repeat: u32,
    },
}

#[derive(Args)]
struct Common {
    /// TCP port on which client and server find each other.
    #[arg(short, long, default_value_t = 18516)]
    port: u16,
    /// Device to use.
    #[arg(short, long, default_value = "rnic0")]
    device: String,
    /// Socket of the daemon.
    #[arg(long, default_value_os_t = rnic::default_socket())]
    socket: PathBuf,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve {
            common,
            entries,
            clients,
        } => serve(&common, entries, clients),
        Command::Get {
            common,
            server,
            keys,
            repeat,
        } => get(&common, &server, &keys, repeat),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv_read: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// An entry as it is read: version, checksum, key, value.
struct Entry {
    version: u64,
    key: u64,
    value: [u8; VALUE],
}

impl Entry {
    /// `None` when the bytes are of different versions or being written.
    fn parse(bytes: &[u8; ENTRY]) -> Option<Entry> {
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside an entry"));
        let entry = Entry {
            version: word(0),
            key: word(16),
            value: *bytes[24..].first_chunk().expect("inside an entry"),
        };
        (entry.version.is_multiple_of(2) && word(8) == entry.checksum()).then_some(entry)
    }

    /// FNV-1a, which is enough against chance.
    fn checksum(&self) -> u64 {
        let words = [self.version.to_le_bytes(), self.key.to_le_bytes()];
        words
            .as_flattened()
            .iter()
            .chain(&self.value)
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    /// Writes it so that a reader at any moment sees an odd version or a checksum that does not fit.
    fn publish(&self, slot: &MrSlice) {
        slot.store_u64(0, self.version.wrapping_sub(1), Ordering::Relaxed);
        fence(Ordering::Release);
        slot.store_u64(8, self.checksum(), Ordering::Relaxed);
        slot.store_u64(16, self.key, Ordering::Relaxed);
        slot.write_at(24, &self.value);
        slot.store_u64(0, self.version, Ordering::Release);
    }
}

fn value(key: u64, version: u64) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    let text = format!("value {} of key {key}", version / 2);
    value[..text.len()].copy_from_slice(text.as_bytes());
    value
}

fn serve(common: &Common, entries: u64, clients: u32) -> Result<()> {
    ensure!(entries > 0, "--entries must be at least 1");
    let context = Context::open(&common.socket, &common.device)?;
    let pd = context.alloc_pd()?;
    let size = usize::try_from(entries)?
        .checked_mul(ENTRY)
        .context("--entries is too many")?;
    let table = pd.alloc_mr(size, Access::REMOTE_READ)?;
    let publish = |key: u64, version: u64| {
        let at = key as usize * ENTRY;
        let value = value(key, version);
        Entry { version, key, value }.publish(&table.slice(at..at + ENTRY));
    };
    (0..entries).for_each(|key| publish(key, 2));

    let listener = exchange::listen(("::", common.port))?;
    println!(
        "{entries} entries; waiting for clients on TCP port {}",
        common.port
    );
    let options = ConnectOptions::default();
    let mut version = 2;
    for _ in 0..clients {
        let mut peer = listener.accept()?;
        let cq = context.create_cq(1)?;
        let qp = pd.create_qp(QpConfig::new(&cq, &cq))?;
        let endpoint = peer.receive()?;
        qp.connect(&endpoint, &options)?;
        peer.send(&(qp.endpoint(&options)?, table.remote()))?;
        // The QP answers by itself; this process only goes on changing the table.
        let done = std::thread::spawn(move || peer.receive::<u64>());
        while !done.is_finished() {
            version += 2;
            (0..entries).for_each(|key| publish(key, version));
            std::thread::sleep(Duration::from_micros(100));
        }
        match done.join() {
            Ok(Ok(reads)) => println!(
                "a client did {reads} reads; the table is at version {}",
                version / 2
            ),
            _ => println!("a client left without a word"),
        }
    }
    Ok(())
}

fn get(common: &Common, server: &str, keys: &[u64], repeat: u32) -> Result<()> {
    let context = Context::open(&common.socket, &common.device)?;
    let pd = context.alloc_pd()?;
    let cq = context.create_cq(16)?;
    let qp = pd.create_qp(QpConfig::new(&cq, &cq))?;
    let buffer = pd.alloc_mr(ENTRY, Access::LOCAL_WRITE)?;
    let options = ConnectOptions::default();
    let mut peer = exchange::connect((server, common.port), Some(Duration::from_secs(10)))?;
    peer.send(&qp.endpoint(&options)?)?;
    let (endpoint, table): (_, RemoteMr) = peer.receive()?;
    qp.connect(&endpoint, &options)?;

    let entries = table.len / ENTRY as u64;
    let (mut reads, mut torn) = (0u64, 0u64);
    let begin = Instant::now();
    for key in keys {
        ensure!(
            *key < entries,
            "key {key}: the table has the keys 0 to {}",
            entries - 1
        );
        let mut last = None;
        for _ in 0..repeat {
            let entry = loop {
                reads += 1;
                match read(&qp, &buffer, table, *key)? {
                    Some(entry) => break entry,
                    None => torn += 1,
                }
            };
            ensure!(entry.key == *key, "asked for key {key}, found key {}", entry.key);
            ensure!(
                entry.value == value(*key, entry.version),
                "key {key}: the value is not its version's"
            );
            last = Some(entry);
        }
        if let Some(entry) = last {
            let text = String::from_utf8_lossy(&entry.value);
            println!("{key}: {}", text.trim_end_matches('\0'));
        }
    }
    let each = begin.elapsed().as_secs_f64() * 1e6 / reads.max(1) as f64;
    println!("{reads} reads of {ENTRY} bytes, {each:.2} us each; {torn} caught an entry being written");
    peer.send(&reads)?;
    Ok(())
}

/// One READ of one entry; `None` when it was being written.
fn read(qp: &Qp, buffer: &MrSlice, table: RemoteMr, key: u64) -> Result<Option<Entry>> {
    qp.post(|batch| {
        batch.read(buffer, table.at(key * ENTRY as u64)).signaled();
    })?;
    let mut out = [Completion::default()];
    if qp.send_cq().spin(&mut out, Some(Duration::from_secs(10)))? == 0 {
        bail!("no answer to a READ for 10 s: is the server alive?");
    }
    out[0].ok().context("READ")?;
    let mut bytes = [0; ENTRY];
    buffer.read_at(0, &mut bytes);
    Ok(Entry::parse(&bytes))
}
