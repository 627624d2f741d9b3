//! `rnicctl`: what a running `rnicd` is doing.
//!
//! Exit codes: 0 answered; 1 no daemon answered; 2 the command line is wrong.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use rnic_control::{
    AdminRequest, AdminResponse,
    hotplug::{PortChange, port_yaml},
    request_line,
    res::{ResPage, ResQuery, ResSummary},
    stall::HeldUp,
    status::{CoreState, DeviceState, GidState, NeighbourState, QpState, Status},
};
use serde_json::Value;

/// Shows what a running rnicd is doing.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 answered; 1 no daemon answered; 2 wrong command line."
)]
struct Arguments {
    /// Admin socket of the daemon. Default: /run/rnic/admin.sock, or rnic-admin.sock in XDG_RUNTIME_DIR or /tmp.
    #[arg(long, global = true, value_name = "PATH", env = "RNIC_ADMIN_SOCKET")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Form {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Objects, memory awaiting a grace period, poll cores, ports.
    Status(Form),
    /// Devices with addresses and frame counters.
    Dev(Form),
    /// Queue pairs with owners, peers, PSNs and counters.
    Qp(Form),
    /// GID tables with indices and holders.
    Gid(Form),
    /// What there is, and who owns it: counts by device, or the objects of a kind.
    Res {
        /// Print JSON instead of text.
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        command: Option<ResCommand>,
    },
    /// Neighbours: their states, MAC addresses and users.
    Neigh(Form),
    /// Adds or removes a port of the running daemon.
    #[command(subcommand)]
    Port(PortCommand),
}

#[derive(Debug, Subcommand)]
enum PortCommand {
    /// Adds a port; returns when clients can use it.
    Add {
        /// A YAML file (`-`: standard input) with one port as in the configuration, or a list of them; or the port
        /// itself as key=value, nested keys joined by dots: name=rnic2 device.vdev=net_null0 addresses=[10.0.0.3/24]
        #[arg(required = true, value_name = "FILE | KEY=VALUE")]
        port: Vec<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Removes a port; returns when all of it is gone. QPs on it go to the error state.
    Remove {
        /// Name of the port.
        name: String,
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Debug, Subcommand)]
enum ResCommand {
    /// Each object with owner, age, state, users and last error.
    Show {
        /// Kind of object.
        #[arg(value_parser = ["qp", "cq", "mr", "mw", "pd", "srq", "xrcd", "ah", "channel", "client"])]
        kind: String,
        /// Only objects of this process.
        #[arg(long)]
        pid: Option<i32>,
        /// Only the QP of this number.
        #[arg(long)]
        qpn: Option<u32>,
        /// Only objects of this device.
        #[arg(long)]
        device: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rnicctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (request, form) = match &arguments.command {
        Command::Status(form) => (AdminRequest::Status, form),
        Command::Dev(form) => (AdminRequest::Dev, form),
        Command::Qp(form) => (AdminRequest::Qp, form),
        Command::Gid(form) => (AdminRequest::Gid, form),
        Command::Neigh(form) => (AdminRequest::Neigh, form),
        Command::Res { json, command } => {
            return resources(&socket(arguments.socket.clone()), *json, command.as_ref());
        }
        Command::Port(PortCommand::Add { port, form }) => (
            AdminRequest::PortAdd {
                ports: port_text(port)?,
            },
            form,
        ),
        Command::Port(PortCommand::Remove { name, form }) => {
            (AdminRequest::PortRemove { name: name.clone() }, form)
        }
    };
    let answer = ask(&socket(arguments.socket.clone()), request.clone())?;
    let text = if form.json {
        format!("{answer:#}\n")
    } else {
        match request {
            AdminRequest::Status => status(&serde_json::from_value(answer)?),
            AdminRequest::Dev => devices(&serde_json::from_value::<Vec<_>>(answer)?),
            AdminRequest::Qp => qps(&serde_json::from_value::<Vec<_>>(answer)?),
            AdminRequest::Gid => gids(&serde_json::from_value::<Vec<_>>(answer)?),
            AdminRequest::Neigh => neighbours(&serde_json::from_value::<Vec<_>>(answer)?),
            // Printed page by page.
            AdminRequest::Res | AdminRequest::ResShow(_) => String::new(),
            AdminRequest::PortAdd { .. } => serde_json::from_value::<Vec<PortChange>>(answer)?
                .iter()
                .map(|port| format!("{} added as device {}\n", port.name, port.device))
                .collect(),
            AdminRequest::PortRemove { .. } => {
                let port: PortChange = serde_json::from_value(answer)?;
                format!("{} removed\n", port.name)
            }
        }
    };
    print(&text);
    Ok(())
}

/// A closed pipe (`rnicctl qp | head`) is no failure.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Counts by device, or the objects of a kind, page by page: `rdma resource` in words and order.
fn resources(socket: &PathBuf, json: bool, command: Option<&ResCommand>) -> anyhow::Result<()> {
    let Some(ResCommand::Show {
        kind,
        pid,
        qpn,
        device,
    }) = command
    else {
        let answer = ask(socket, AdminRequest::Res)?;
        if json {
            print(&format!("{answer:#}\n"));
            return Ok(());
        }
        for (index, sum) in serde_json::from_value::<Vec<ResSummary>>(answer)?
            .iter()
            .enumerate()
        {
            let ResSummary {
                device,
                pd,
                cq,
                qp,
                mr,
                mw,
                srq,
                ah,
                channel,
                xrcd,
                ctx,
            } = sum;
            print(&format!(
                "{index}: {device}: pd {pd} cq {cq} qp {qp} mr {mr} ctx {ctx} srq {srq} ah {ah} mw {mw} channel {channel} \
                 xrcd {xrcd}\n"
            ));
        }
        return Ok(());
    };
    let mut query = ResQuery {
        kind: serde_json::from_value(Value::from(kind.as_str()))?,
        after: 0,
        pid: *pid,
        qpn: *qpn,
    };
    let mut all = Vec::new();
    loop {
        let page: ResPage = serde_json::from_value(ask(socket, AdminRequest::ResShow(query))?)?;
        let wanted = |object: &Value| device.as_ref().is_none_or(|device| object["device"] == **device);
        let objects = page.objects.into_iter().filter(wanted);
        if json {
            all.extend(objects);
        } else {
            objects.for_each(|object| print(&resource(kind, &object)));
        }
        match page.next {
            Some(next) => query.after = next,
            None => break,
        }
    }
    if json {
        print(&format!("{:#}\n", Value::from(all)));
    }
    Ok(())
}

/// `qp device rnic0 qpn 258 …`: names and values in a line; what is not there is left out.
fn resource(kind: &str, object: &Value) -> String {
    let mut text = kind.to_owned();
    for (name, value) in object.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(value) => text += &format!(" {name} {value}"),
            value => text += &format!(" {name} {value}"),
        }
    }
    text + "\n"
}

/// The port to be added: from a file, or in words.
fn port_text(words: &[String]) -> anyhow::Result<String> {
    match words {
        [file] if file == "-" => {
            std::io::read_to_string(std::io::stdin()).context("reading the port from standard input")
        }
        [file] if !file.contains('=') => {
            std::fs::read_to_string(file).with_context(|| format!("reading the port from {file}"))
        }
        words => port_yaml(words).map_err(anyhow::Error::msg),
    }
}

fn socket(given: Option<PathBuf>) -> PathBuf {
    let system = PathBuf::from("/run/rnic/admin.sock");
    given.unwrap_or_else(|| {
        let own = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
        let own = own.join("rnic-admin.sock");
        if !system.exists() && own.exists() {
            own
        } else {
            system
        }
    })
}

fn ask(path: &PathBuf, request: AdminRequest) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(path).with_context(|| {
        format!(
            "no rnicd answers at {} (is it running? RNIC_ADMIN_SOCKET or --socket names another)",
            path.display()
        )
    })?;
    // A driver may take its time to bring a port up or down.
    let patience = match request {
        AdminRequest::PortAdd { .. } | AdminRequest::PortRemove { .. } => 120,
        _ => 10,
    };
    stream.set_read_timeout(Some(Duration::from_secs(patience)))?;
    stream.write_all(request_line(request).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("the daemon did not answer")?;
    match serde_json::from_str(&line).context("the daemon's answer makes no sense")? {
        AdminResponse::Ok(value) => Ok(value),
        AdminResponse::Error(text) => bail!("{text}"),
    }
}

fn status(status: &Status) -> String {
    let Status {
        clients,
        pds,
        mrs,
        cqs,
        qps,
        ahs,
        srqs,
        xrcds,
        mws,
        bytes_awaiting_grace,
        bytes_awaiting_grace_bound,
        mapped_bytes_awaiting_grace,
        mapped_bytes_awaiting_grace_bound,
        destructions_in_line,
        oldest_grace_us,
        cores,
        ports,
    } = status;
    let mut text = format!(
        "clients {clients}   PDs {pds}   MRs {mrs}   MWs {mws}   CQs {cqs}   QPs {qps}   SRQs {srqs}   XRCDs {xrcds}   AHs {ahs}\n"
    );
    text += &format!(
        "awaiting grace: {bytes_awaiting_grace} bytes of at most {bytes_awaiting_grace_bound}, and of memory regions \
         {mapped_bytes_awaiting_grace} of at most {mapped_bytes_awaiting_grace_bound}; the oldest for \
         {oldest_grace_us} us; {destructions_in_line} destructions in line\n"
    );
    for core in cores {
        text += &stall(core);
    }
    text.push('\n');
    let mut table = Table::new(&["CORE", "STATE", "EPOCH", "BUSY", "COUNTERS"]);
    for core in cores {
        let total = core.busy_cycles + core.idle_cycles;
        let busy = if total == 0 {
            0.0
        } else {
            core.busy_cycles as f64 * 100.0 / total as f64
        };
        table.row([
            core.id.to_string(),
            match core.stalled_ms {
                0 => core.state.clone(),
                _ => "STALLED".into(),
            },
            core.epoch.to_string(),
            format!("{busy:.1}%"),
            counters_text(&core.counters),
        ]);
    }
    text += &table.text();
    text.push('\n');
    let mut table = Table::new(&["PORT", "STATE", "MTU", "CONGESTION", "COUNTERS", "GIDS"]);
    for port in ports {
        table.row([
            port.name.clone(),
            port.state.clone(),
            port.mtu.to_string(),
            port.congestion.clone(),
            counters_text(&port.counters),
            port.gids.join(" "),
        ]);
    }
    text + &table.text()
}

/// Bits a second: "156Mb/s".
fn rate_text(bps: u64) -> String {
    match bps {
        10_000_000_000.. => format!("{}Gb/s", bps / 1_000_000_000),
        10_000_000.. => format!("{}Mb/s", bps / 1_000_000),
        _ => format!("{}kb/s", bps / 1_000),
    }
}

/// Counters that are not zero.
fn counters_text(counters: &BTreeMap<String, u64>) -> String {
    let counted = counters.iter().filter(|(_, value)| **value != 0);
    let texts: Vec<_> = counted.map(|(name, value)| format!("{name}={value}")).collect();
    texts.join(" ")
}

/// What is to be said of a core that does not go on.
fn stall(core: &CoreState) -> String {
    let Some(held) = &core.held_up else {
        return String::new();
    };
    let HeldUp {
        objects,
        bytes,
        mapped_bytes,
        oldest_us,
        commands,
    } = held;
    let objects: Vec<_> = objects.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let objects = match objects.is_empty() {
        true => "nothing".into(),
        false => objects.join(", "),
    };
    format!(
        "poll core {} has not gone on for {} ms and holds up {objects}: {bytes} bytes, {mapped_bytes} of memory regions, \
         the oldest for {oldest_us} us; {commands} commands unanswered\n",
        core.id, core.stalled_ms
    )
}

fn devices(devices: &[DeviceState]) -> String {
    let mut text = String::new();
    for device in devices {
        let DeviceState {
            port,
            driver,
            mac,
            path_mtu,
            queues,
            ..
        } = device;
        let speed = device
            .speed_mbps
            .map_or_else(|| "unknown speed".into(), |mbps| format!("{mbps} Mb/s"));
        text += &format!(
            "{}: {} ({driver}, {queues} queues, {speed})\n",
            port.name, port.state
        );
        text += &format!("  MAC {mac}   MTU {}   path MTU {path_mtu}\n", port.mtu);
        for (index, gid) in port.gids.iter().enumerate().filter(|(_, gid)| !is_zero(gid)) {
            text += &format!("  GID {index} {gid} (RoCE v2)\n");
        }
        let DeviceState {
            rx_frames,
            rx_bytes,
            rx_dropped,
            tx_frames,
            tx_bytes,
            tx_dropped,
            ..
        } = device;
        text += &format!("  received {rx_frames} frames, {rx_bytes} bytes, {rx_dropped} dropped\n");
        text += &format!("  sent     {tx_frames} frames, {tx_bytes} bytes, {tx_dropped} dropped\n");
    }
    text
}

fn qps(qps: &[QpState]) -> String {
    let headings = [
        "QPN",
        "DEVICE",
        "PID",
        "PROGRAM",
        "CORE",
        "STATE",
        "PEER",
        "PEER-QPN",
        "MTU",
        "SQ-PSN",
        "RQ-PSN",
        "SENT",
        "RECEIVED",
        "DROPPED",
        "RETRIES",
        "RATE",
        "LAST-CAUSE",
    ];
    let mut table = Table::new(&headings);
    for qp in qps {
        let cause = qp.last_cause.as_ref();
        table.row([
            format!("{:#08x}", qp.qpn),
            qp.device.clone(),
            qp.pid.to_string(),
            qp.comm.clone(),
            qp.core.to_string(),
            qp.state.clone(),
            qp.peer.map_or_else(|| "-".into(), |ip| ip.to_string()),
            format!("{:#08x}", qp.dest_qpn),
            qp.path_mtu.to_string(),
            qp.sq_psn.to_string(),
            qp.rq_psn.to_string(),
            qp.sent_messages.to_string(),
            qp.received_packets.to_string(),
            qp.dropped_packets.to_string(),
            qp.retries.to_string(),
            qp.rate_bps.map_or_else(|| "-".into(), rate_text),
            cause.map_or_else(|| "-".into(), |c| format!("{} (PSN {})", c.check, c.psn)),
        ]);
    }
    table.text()
}

fn is_zero(gid: &str) -> bool {
    gid.chars().all(|c| matches!(c, '0' | ':'))
}

fn gids(gids: &[GidState]) -> String {
    let mut table = Table::new(&["DEVICE", "INDEX", "GID", "ADDRESS", "VLAN", "STATE", "HOLDERS"]);
    for gid in gids {
        table.row([
            gid.device.clone(),
            gid.index.to_string(),
            gid.gid.clone(),
            format!("{}/{}", gid.ip, gid.prefix_len),
            gid.vlan.map_or_else(|| "-".into(), |vlan| vlan.to_string()),
            gid.state.clone(),
            gid.holders.to_string(),
        ]);
    }
    table.text()
}

fn neighbours(neighbours: &[NeighbourState]) -> String {
    let mut table = Table::new(&["DEVICE", "ADDRESS", "VLAN", "MAC", "STATE", "AGE", "USERS"]);
    for neighbour in neighbours {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        table.row([
            neighbour.device.clone(),
            neighbour.ip.to_string(),
            or_dash(neighbour.vlan.map(|vlan| vlan.to_string())),
            or_dash(neighbour.mac.clone()),
            neighbour.state.clone(),
            or_dash(
                neighbour
                    .age_ms
                    .map(|ms| format!("{}.{}s", ms / 1000, ms % 1000 / 100)),
            ),
            neighbour.users.to_string(),
        ]);
    }
    table.text()
}

/// Columns as wide as their widest cell.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(headings: &[&str; N]) -> Self {
        Table {
            rows: vec![headings.map(str::to_owned)],
        }
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    fn text(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let line = |row: &[String; N]| {
            let cells = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}
