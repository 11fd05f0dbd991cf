//! The command line: what can be asked, and the help that explains it.

mod admin;
mod bench;
mod offline;
mod server;
mod values;

pub use admin::*;
pub use bench::*;
pub use offline::*;
pub use server::*;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

/// henge: one distributed storage system in one binary.
///
/// `henge demo` shows what it does; `henge server --data DIR` starts a complete object store, without configuration.
#[derive(Parser, Debug)]
#[command(name = "henge", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a node: an S3 object store that keeps its data in DIR
    Server(ServerArgs),
    /// Run a whole cluster on this machine to play with: kill, pause and restart its nodes
    Dev(DevArgs),
    /// See it work: three nodes; store files, kill a node, read them back through another, compare, heal
    Demo(DemoArgs),
    /// Say whether the data is safe, and what to do if not (exit: 0 safe, 2 at risk, 3 worse, 1 error)
    Status(StatusArgs),
    /// Show what happened in the cluster, as a timeline: suspected, fenced, elected, repaired, moved
    Events(EventsArgs),
    /// Make, list and delete access keys
    Key(KeyArgs),
    /// Change the root user's secret
    Root(RootArgs),
    /// Make, list and change buckets
    Bucket(BucketArgs),
    /// Make and list pools, which clients know as storage classes
    Pool(PoolArgs),
    /// Hand out fence tokens, with which a write proves that its sender still holds a lock
    Fence(FenceArgs),
    /// Make a token with which a new node may join the cluster
    Token(TokenArgs),
    /// List the cluster's nodes, drain one, remove one
    Node(NodeArgs),
    /// List the cluster's disks, drain one, remove one
    Disk(DiskArgs),
    /// Measure the disk or a running server, and check what it acknowledged
    Bench(BenchArgs),
    /// Check the directories of stopped nodes: is everything there that metadata names (exit: 0 clean, 2 damage)
    Fsck(FsckArgs),
    /// Give a stopped cluster another certificate authority, when the key of its own may be known to others
    Authority(AuthorityArgs),
    /// Keep the cluster's metadata in a file, and put it back when it is lost
    Metadata(MetadataArgs),
    /// Make a stopped node the only voter of its cluster, when the majority of voters is gone for good
    Recover(RecoverArgs),
}

/// Parses the arguments of this process. Help and version are printed and end it; what cannot be understood is one
/// sentence.
pub fn parse() -> Result<Cli, Failure> {
    use clap::error::ErrorKind;
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // The whole help is the answer; the status says that nothing was done.
            eprint!("{}", error.render());
            std::process::exit(1)
        }
        _ => Failure(one_sentence(&error.render().to_string())),
    })
}

/// The first paragraph of clap's message, on one line.
fn one_sentence(rendered: &str) -> String {
    let paragraph: Vec<&str> = rendered.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let joined = paragraph.join(" ");
    let sentence = joined.strip_prefix("error: ").unwrap_or(&joined);
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("henge");
    let command: Vec<&str> =
        usage.split_whitespace().take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect();
    format!("{sentence}; see `{} --help`", command.join(" "))
}

#[cfg(test)]
mod tests {
    use super::values::parse_disk;
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_that_scripts_depend_on() {
        let Command::Server(server) = Cli::try_parse_from(["henge", "server", "--data", "d"]).unwrap().command else {
            panic!("server");
        };
        assert_eq!(server.s3, "127.0.0.1:9000".parse().unwrap());
        assert_eq!(server.admin, "127.0.0.1:9001".parse().unwrap());
        assert_eq!(server.cluster, "127.0.0.1:9002".parse().unwrap());
        assert_eq!(server.region, "us-east-1");
    }

    #[test]
    fn mistakes_become_one_sentence() {
        for (args, expected) in [
            (vec!["henge", "server", "--data", "d", "--bogus"], "unexpected argument '--bogus' found"),
            (vec!["henge", "server"], "the following required arguments were not provided: --data <DIR>"),
            (vec!["henge", "server", "--data", "d", "--s3", "nowhere"], "invalid value 'nowhere'"),
            (vec!["henge", "server", "--data", "d", "--tls-cert", "c"], "--tls-key"),
            (vec!["henge", "server", "--data", "d", "--disk", "/a=lots"], "invalid value '/a=lots'"),
            (vec!["henge", "server", "--data", "d", "--locality", "planet=3"], "the levels are"),
            (vec!["henge", "dev", "--data", "d"], "--nodes <N>"),
            (vec!["henge", "dev", "kill", "one", "--data", "d"], "invalid value 'one'"),
            (vec!["henge", "pool", "create", "p", "--class", "P", "--copies", "4"], "as many as the metadata has"),
            (vec!["henge", "nonsense"], "unrecognized subcommand 'nonsense'"),
            (vec!["henge", "fsck"], "<DIR>"),
        ] {
            let error = Cli::try_parse_from(&args).expect_err(&format!("{args:?}"));
            let sentence = one_sentence(&error.render().to_string());
            assert!(sentence.contains(expected), "{args:?}: {sentence}");
            assert!(!sentence.contains('\n') && sentence.contains("--help`"), "{sentence}");
        }
    }

    #[test]
    fn disks_may_have_sizes() {
        let plain = DiskArg { directory: "/mnt/a".into(), size_bytes_max: None };
        assert_eq!(parse_disk("/mnt/a"), Ok(plain));
        let sized = DiskArg { directory: "/mnt/a".into(), size_bytes_max: Some(3 << 30) };
        assert_eq!(parse_disk("/mnt/a=3GiB"), Ok(sized));
        assert!(parse_disk("=3GiB").is_err());
    }
}
