//! The command line: what can be asked, and what an exit code means. Each command is one file's
//! worth of work below; [`target`] makes a running node and a directory look alike to them.

mod faults;
mod look;
mod serve;
mod target;
mod text;

use clap::{Args, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use storenode::wire::{BankId, Key, Version};

/// Storage node of tercet: keys and values of one shard of one bank, in one directory, over HTTP.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  # make a token once per volume, then serve shard 0 of bank B from /data/b0
  tercet token /etc/tercet/token
  storenode serve --dir /data/b0 --bank B --shard 0 --token-file /etc/tercet/token

  # look into the running node, or into its directory while it is stopped
  storenode status --url 127.0.0.1:8000 --token-file /etc/tercet/token
  storenode keys --dir /data/b0 --prefix 02 --limit 20
  storenode verify --dir /data/b0 && echo all whole

  # a drill: damage one record on this node (serve it with --allow-faults), watch tercet repair it
  storenode corrupt 0200000000000001 --url 127.0.0.1:8000 --token-file /etc/tercet/token

Exit codes:
  0  done
  1  damage was found, the key is not there, or the node refused
  2  the command cannot run as given (bad flags, port taken, directory in use, node not reachable)

--json is stable: fields are only added. Versions are \"eEPOCH.SEQ\", keys and digests lower-case
hexadecimal; `storenode COMMAND --help` lists the fields.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve one store until SIGTERM or SIGINT
    Serve(serve::ServeArgs),
    /// Who the node is, where it stands, how full it is
    #[command(after_help = look::STATUS_HELP)]
    Status(StatusArgs),
    /// List keys: version, digest, size, state
    #[command(after_help = look::KEYS_HELP)]
    Keys(KeysArgs),
    /// Show one record, checked against its digest
    #[command(after_help = look::GET_HELP)]
    Get(GetArgs),
    /// Read every value from the disk and check it; exit code 1 when damage is found
    #[command(after_help = look::VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Fault: replace a value in silence, or make a foreign record
    Put(PutArgs),
    /// Fault: flip one bit of a stored value
    Corrupt(KeyArgs),
    /// Fault: forget a record, as a lost write would
    Drop(KeyArgs),
    /// Fault: wait before every reply (0 ends it; running nodes only)
    Delay(DelayArgs),
    /// Fault: answer everything but `status` with an error (running nodes only)
    Refuse(RefuseArgs),
}

/// Which node: a running one by address, or a stopped one by directory.
#[derive(Args, Debug, Clone)]
#[command(group = clap::ArgGroup::new("node").required(true))]
pub(crate) struct TargetArgs {
    /// Running node, http://HOST:PORT or HOST:PORT; needs --token-file
    #[arg(long, value_name = "URL", group = "node")]
    url: Option<String>,
    /// Directory of a node that does not run
    #[arg(long, value_name = "DIR", group = "node")]
    dir: Option<PathBuf>,
    /// The volume's token (mode 0600)
    #[arg(long, value_name = "FILE", env = "TERCET_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Give up when the node does not answer one request in so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout_s: u32,
    /// Print JSON instead of words
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct StatusArgs {
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct KeysArgs {
    /// Only keys that begin with these bytes, hexadecimal
    #[arg(long, value_name = "HEX", value_parser = text::parse_prefix, default_value = "")]
    prefix: Bytes,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Tombstones of deleted keys too
    #[arg(long)]
    deleted: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct GetArgs {
    /// Hexadecimal, or `text:` and the key itself
    #[arg(value_parser = text::parse_key)]
    key: Bytes,
    /// Write the value, and nothing else, to standard output
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Write the value to a new file
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct VerifyArgs {
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct KeyArgs {
    /// Hexadecimal, or `text:` and the key itself
    #[arg(value_parser = text::parse_key)]
    key: Bytes,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct PutArgs {
    /// Hexadecimal, or `text:` and the key itself
    #[arg(value_parser = text::parse_key)]
    key: Bytes,
    /// New value, as it is; or `hex:` and hexadecimal digits
    #[arg(value_parser = text::parse_value, required_unless_present = "from")]
    value: Option<Bytes>,
    /// Take the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    from: Option<PathBuf>,
    /// Version for a key that is not there, such as e1.7; default e1.1
    #[arg(long, value_parser = text::parse_version)]
    version: Option<Version>,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct DelayArgs {
    /// Milliseconds before each reply
    millis: u32,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
struct RefuseArgs {
    /// `on` or `off`
    #[arg(value_parser = text::parse_on_off, action = clap::ArgAction::Set)]
    on: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Bytes given on the command line. (A `Vec` would mean "several" to clap.)
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Bytes(Key);

/// Why a command ends early: a message for people, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command cannot run as given.
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }
    /// It ran, and the answer is bad.
    fn bad(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        // `storenode keys | head` is not a failure.
        let code = u8::from(e.kind() != std::io::ErrorKind::BrokenPipe);
        Self { code, message: format!("cannot write the answer: {e}") }
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Runs the command given on the command line.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    run(cli.command).unwrap_or_else(|failure| {
        if failure.code != 0 {
            // A standard error that takes nothing is no reason to panic.
            let _ = writeln!(std::io::stderr(), "storenode: {}", failure.message);
        }
        ExitCode::from(failure.code)
    })
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Serve(args) => serve::serve(&args),
        Command::Status(args) => look::status(&args.target),
        Command::Keys(args) => look::keys(&args),
        Command::Get(args) => look::get(&args),
        Command::Verify(args) => look::verify(&args.target),
        Command::Put(args) => faults::put(args),
        Command::Corrupt(args) => faults::corrupt(args),
        Command::Drop(args) => faults::drop_record(args),
        Command::Delay(args) => faults::delay(&args),
        Command::Refuse(args) => faults::refuse(&args),
    }
}

/// The bank of `--bank`.
fn parse_bank(s: &str) -> Result<BankId, String> {
    s.parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|c| c.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_help_parses() {
        for line in EXAMPLES.lines().map(str::trim).filter(|l| l.starts_with("storenode ")) {
            if line.starts_with("storenode COMMAND") {
                continue;
            }
            let line = line.split(" && ").next().unwrap();
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn keys_and_values_are_hexadecimal_or_text() {
        let Command::Get(a) = parse("storenode get 0aFF --dir d").unwrap() else { panic!() };
        assert_eq!(a.key.0, [0x0a, 0xff]);
        let Command::Put(a) =
            parse("storenode put text:k v0 --version e2.7 --dir d --json").unwrap()
        else {
            panic!()
        };
        assert_eq!((a.key.0, a.value.unwrap().0), (b"k".to_vec(), b"v0".to_vec()));
        assert_eq!(a.version, Some(Version::new(2, 7)));
        assert!(a.target.json);
        let last = "storenode serve --dir d --bank A --shard 255 --token-file t --capacity 1G";
        assert!(parse(last).is_ok());
        for bad in [
            "storenode get 0a1 --dir d",
            "storenode get zz --dir d",
            "storenode get text: --dir d",
            "storenode put 0a 0b --version 7 --dir d",
            "storenode put 0a hex:0 --dir d",
            "storenode put 0a --dir d",
            "storenode refuse maybe --url u",
            "storenode delay -1 --url u",
            "storenode keys --dir d --url u",
            "storenode keys",
            "storenode serve --dir d --bank D --shard 0 --token-file t",
            "storenode serve --dir d --bank A --token-file t",
            "storenode serve --dir d --bank A --shard 0 --token-file t --capacity 10Q",
            "storenode serve --dir d --bank A --shard 0 --token-file t --capacity 0",
            "storenode serve --dir d --bank A --shard 256 --token-file t",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
