//! `causeway image`: the images that the nodes' pods are made from. There is no registry: archives come from `docker
//! save`, buildah and their like, or from `image build`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use kubelet::images::archive::{Archive, Archived};
use kubelet::images::build::{Recipe, build};
use kubelet::images::layer::DEFAULT_LIMIT;
use kubelet::images::{Image, ImageConfig, ImageError, ImageStore, check_reference};
use serde::Serialize;

use crate::StateDirArg;
use crate::layout::StateDir;
use crate::settings::Settings;

/// Commands below `image`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Take images from an archive onto the nodes
    #[command(after_help = "Examples:\n  docker save web:v1 | causeway image import -\n  \
        buildah push web oci-archive:web.tar:web:v1 && causeway image import web.tar\n  \
        causeway image import web.tar --name web:v1 --node node-2\n\n\
        Exit code: 0 the images are on the nodes, 2 they are not.")]
    Import(ImportArgs),
    /// Make an image of a static program
    #[command(after_help = "Examples:\n  \
        causeway image build --tag web:v1 --from-binary target/x86_64-unknown-linux-musl/release/web\n  \
        causeway image build --tag sh:v1 --from-binary /bin/busybox --entrypoint /busybox --entrypoint sh\n  \
        causeway image build --tag web:v1 --from-binary web --file site:/srv --archive web.tar\n\n\
        Exit code: 0 the image is on the nodes or in the archive, 2 it is not.")]
    Build(BuildArgs),
    /// List the images of the nodes
    #[command(
        visible_alias = "list",
        after_help = "Exit code: 0 listed, 2 there is no cluster."
    )]
    Ls(ListArgs),
    /// Take images off the nodes
    #[command(after_help = "Examples:\n  causeway image rm web:v1\n\n\
        A node where a container runs from one keeps it.\n\n\
        Exit code: 0 they are gone, 1 a node keeps one or none had it, 2 there is no cluster.")]
    Rm(RemoveArgs),
}

/// Whose images.
#[derive(Clone, Debug, clap::Args)]
pub struct NodesArg {
    #[command(flatten)]
    state_dir: StateDirArg,
    /// Only of this node; may be given more than once
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
}

/// Flags of `image import`.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportArgs {
    /// An archive of docker save or an OCI layout, as tar, gzip or zstd allowed; - = standard input
    archive: PathBuf,
    /// Call the image this, and not as the archive does
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    nodes: NodesArg,
}

/// Flags of `image build`.
#[derive(Clone, Debug, clap::Args)]
pub struct BuildArgs {
    /// Name of the image
    #[arg(long, value_name = "NAME")]
    tag: String,
    /// Static program; it comes to / under its own name
    #[arg(long, value_name = "PATH")]
    from_binary: PathBuf,
    /// A word of the command that containers run, the program itself by default; may be given more than once
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// A word that a pod's args replace; may be given more than once
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// A variable; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file or directory that comes along, to / under its own name by default; may be given more than once
    #[arg(long, value_name = "PATH[:TARGET]")]
    file: Vec<String>,
    /// User and group by name or number, root by default
    #[arg(long, value_name = "USER[:GROUP]", default_value = "")]
    user: String,
    /// Working directory, / by default
    #[arg(long, value_name = "PATH", default_value = "")]
    workdir: String,
    /// Write a tar archive, and leave the nodes alone
    #[arg(long, value_name = "FILE", conflicts_with = "nodes")]
    archive: Option<PathBuf>,
    #[command(flatten)]
    nodes: NodesArg,
}

/// Flags of `image ls`.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    nodes: NodesArg,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Flags of `image rm`.
#[derive(Clone, Debug, clap::Args)]
pub struct RemoveArgs {
    /// Names or ids
    #[arg(required = true)]
    images: Vec<String>,
    #[command(flatten)]
    nodes: NodesArg,
}

/// The images of one node.
struct NodeImages {
    node: String,
    store: ImageStore,
    containers: PathBuf,
}

/// An image as `image ls` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    names: Vec<String>,
    size_bytes: u64,
    nodes: Vec<String>,
}

/// Runs a command below `image`.
pub fn image(command: &ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Import(args) => {
            let archive = read(&args.archive, &args.nodes.state_dir.open()?)?;
            import(&archive, args.name.as_deref(), &args.nodes)?;
            Ok(ExitCode::SUCCESS)
        }
        ImageCommand::Build(args) => build_image(args).map(|()| ExitCode::SUCCESS),
        ImageCommand::Ls(args) => list(args).map(|()| ExitCode::SUCCESS),
        ImageCommand::Rm(args) => remove(args),
    }
}

impl NodesArg {
    fn stores(&self) -> anyhow::Result<Vec<NodeImages>> {
        let state = self.state_dir.open()?;
        let Some(settings) = Settings::load(&state.settings())? else {
            bail!("no cluster in {}; causeway up makes one", state.root().display());
        };
        let known: Vec<String> = settings.node_names().collect();
        if let Some(unknown) = self.nodes.iter().find(|node| !known.contains(node)) {
            bail!("no node {unknown}: there are {}", known.join(", "));
        }
        let wanted = known
            .into_iter()
            .filter(|node| self.nodes.is_empty() || self.nodes.contains(node));
        let stores = wanted.map(|node| {
            let kubelet = state.node(&node).kubelet();
            Ok(NodeImages {
                store: ImageStore::at(&kubelet.join("images"))?,
                containers: kubelet.join("containers"),
                node,
            })
        });
        stores.collect()
    }
}

fn read(path: &Path, state: &StateDir) -> anyhow::Result<Archive> {
    let path = if path == Path::new("-") {
        Path::new("/dev/stdin")
    } else {
        path
    };
    ensure!(
        state.root().is_dir(),
        "no cluster in {}; causeway up makes one",
        state.root().display()
    );
    Archive::open(path, state.root()).with_context(|| format!("image archive {}", path.display()))
}

fn import(archive: &Archive, name: Option<&str>, nodes: &NodesArg) -> anyhow::Result<()> {
    let images = archive.images().context("image archive")?;
    ensure!(
        name.is_none() || images.len() == 1,
        "--name names one image, and the archive has {}",
        images.len()
    );
    for name in images
        .iter()
        .flat_map(|image| &image.names)
        .map(String::as_str)
        .chain(name)
    {
        check_reference(name).map_err(|why| anyhow::anyhow!("image name {name:?}: {why}"))?;
    }
    let stores = nodes.stores()?;
    for image in &images {
        let imported = import_one(archive, image, name, &stores)?;
        let on: Vec<&str> = stores.iter().map(|one| one.node.as_str()).collect();
        println!(
            "imported {} ({}, {}) on {}",
            imported.names.join(", "),
            short(&imported.id),
            megabytes(imported.size_bytes),
            on.join(", ")
        );
    }
    Ok(())
}

fn import_one(
    archive: &Archive,
    image: &Archived,
    name: Option<&str>,
    stores: &[NodeImages],
) -> anyhow::Result<Image> {
    let mut imported = None;
    for NodeImages { node, store, .. } in stores {
        let taken = store.import(archive, image, name, DEFAULT_LIMIT);
        imported = Some(taken.with_context(|| format!("importing onto {node}"))?);
    }
    imported.context("the cluster has no node")
}

fn build_image(args: &BuildArgs) -> anyhow::Result<()> {
    check_reference(&args.tag).map_err(|why| anyhow::anyhow!("--tag {:?}: {why}", args.tag))?;
    let recipe = recipe(args)?;
    if let Some(path) = &args.archive {
        let id = write_archive(&recipe, path)?;
        println!("wrote {} ({}) to {}", args.tag, short(&id), path.display());
        return Ok(());
    }
    let state = args.nodes.state_dir.open()?;
    // Told before the work is done.
    args.nodes.stores()?;
    let path = state.root().join(format!(".image-{}.tar", std::process::id()));
    let archive = write_archive(&recipe, &path).and_then(|_| read(&path, &state));
    // It is open, and needs no name any more.
    let _ = fs::remove_file(&path);
    import(&archive?, None, &args.nodes)
}

fn write_archive(recipe: &Recipe, path: &Path) -> anyhow::Result<String> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(build(recipe, BufWriter::new(file))?)
}

fn recipe(args: &BuildArgs) -> anyhow::Result<Recipe> {
    let files: anyhow::Result<Vec<_>> = args.file.iter().map(|file| file_of(file)).collect();
    if let Some(bad) = args.env.iter().find(|pair| !pair.contains('=')) {
        bail!("--env {bad}: it is NAME=VALUE");
    }
    Ok(Recipe {
        name: args.tag.clone(),
        binary: args.from_binary.clone(),
        files: files?,
        config: ImageConfig {
            entrypoint: args.entrypoint.clone(),
            cmd: args.cmd.clone(),
            env: args.env.clone(),
            working_dir: args.workdir.clone(),
            user: args.user.clone(),
        },
    })
}

/// `PATH` or `PATH:TARGET`.
fn file_of(argument: &str) -> anyhow::Result<(PathBuf, String)> {
    if let Some((path, target)) = argument.split_once(':') {
        return Ok((PathBuf::from(path), target.to_owned()));
    }
    let path = PathBuf::from(argument);
    let name = path.file_name().and_then(OsStr::to_str);
    let name = name
        .with_context(|| format!("--file {argument}: it names no file"))?
        .to_owned();
    Ok((path, name))
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut images: BTreeMap<String, Listed> = BTreeMap::new();
    for NodeImages { node, store, .. } in args.nodes.stores()? {
        for image in store.list()? {
            let listed = images.entry(image.id.clone()).or_insert(Listed {
                id: image.id,
                names: Vec::new(),
                size_bytes: image.size_bytes,
                nodes: Vec::new(),
            });
            let new = image
                .names
                .into_iter()
                .filter(|name| !listed.names.contains(name));
            let new: Vec<String> = new.collect();
            listed.names.extend(new);
            listed.nodes.push(node.clone());
        }
    }
    let mut images: Vec<Listed> = images.into_values().collect();
    images.sort_by(|a, b| a.names.cmp(&b.names));
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&images)?),
        Output::Text => print!("{}", table(&images)),
    }
    Ok(())
}

fn table(images: &[Listed]) -> String {
    let rows = images.iter().flat_map(|image| {
        let names = if image.names.is_empty() {
            vec!["<none>"]
        } else {
            image.names.iter().map(String::as_str).collect()
        };
        names.into_iter().map(|name| {
            let (id, size) = (short(&image.id), megabytes(image.size_bytes));
            [name.to_owned(), id, size, image.nodes.join(",")]
        })
    });
    let head = ["IMAGE", "ID", "SIZE", "NODES"].map(str::to_owned);
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let (name, id, size) = (width(0), width(1), width(2));
    rows.iter()
        .map(|[a, b, c, d]| format!("{a:name$}   {b:id$}   {c:>size$}   {d}\n"))
        .collect()
}

fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let stores = args.nodes.stores()?;
    let mut code = ExitCode::SUCCESS;
    for reference in &args.images {
        let mut removed = Vec::new();
        for NodeImages {
            node,
            store,
            containers,
        } in &stores
        {
            match store.remove(&in_full(store, reference)?, containers) {
                Ok(()) => removed.push(node.as_str()),
                Err(ImageError::Absent(_)) => {}
                Err(error @ ImageError::InUse { .. }) => {
                    eprintln!("error: {node}: {error}");
                    code = ExitCode::from(1);
                }
                Err(error) => return Err(error).with_context(|| format!("removing {reference} from {node}")),
            }
        }
        if removed.is_empty() {
            eprintln!("error: {reference} was removed from no node");
            code = ExitCode::from(1);
        } else {
            println!("removed {reference} from {}", removed.join(", "));
        }
    }
    Ok(code)
}

/// The id that a short one stands for, as `ls` prints it; other references as they are.
fn in_full(store: &ImageStore, reference: &str) -> anyhow::Result<String> {
    let ids = store.list()?.into_iter().map(|image| image.id);
    let mut ids = ids.filter(|id| short(id) == reference);
    Ok(ids.next().unwrap_or_else(|| reference.to_owned()))
}

/// The first twelve digits of an id, as docker prints it.
fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_by_name_with_their_nodes() {
        let listed = |id: &str, names: &[&str], size_bytes, nodes: &[&str]| Listed {
            id: format!("sha256:{id}"),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            size_bytes,
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        };
        let images = [
            listed("0123456789abcdef", &[], 100_000, &["node-1"]),
            listed(
                "aa",
                &["docker.io/library/a:v1", "x/b:v2"],
                12_345_678,
                &["node-1", "node-2"],
            ),
        ];
        let expected = "\
IMAGE                    ID                SIZE   NODES
<none>                   0123456789ab    0.1 MB   node-1
docker.io/library/a:v1   aa             12.3 MB   node-1,node-2
x/b:v2                   aa             12.3 MB   node-1,node-2
";
        assert_eq!(table(&images), expected);
    }

    #[test]
    fn a_file_comes_under_its_own_name_or_where_it_is_told() {
        for (argument, path, target) in [
            ("a/site", "a/site", "site"),
            ("a/site:/srv/www", "a/site", "/srv/www"),
        ] {
            let (from, to) = file_of(argument).expect("valid");
            assert_eq!((from, to.as_str()), (PathBuf::from(path), target));
        }
        assert!(file_of("/").is_err());
    }
}
