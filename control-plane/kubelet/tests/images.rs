//! Archives of images, good and hostile, through the store that a kubelet makes containers from.

mod scratch;

mod privileged {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    use kubelet::images::archive::{Archive, architecture, sha256};
    use kubelet::images::build::{Recipe, build};
    use kubelet::images::layer::{DEFAULT_LIMIT, Limit};
    use kubelet::images::{Image, ImageConfig, ImageError, ImageStore};
    use serde_json::{Value, json};
    use tar::EntryType;

    use crate::scratch::{Scratch, may_run};

    impl Scratch {
        fn archive(&self, bytes: &[u8]) -> Result<Archive, ImageError> {
            let path = self.0.join("image.tar");
            fs::write(&path, bytes).expect("written");
            Archive::open(&path, &self.0)
        }

        fn import(&self, archive: &[u8], limit: Limit) -> Result<Image, ImageError> {
            let archive = self.archive(archive)?;
            let images = archive.images()?;
            let first = images.first().expect("one image");
            self.store().import(&archive, first, None, limit)
        }

        /// What is in the store, without its lock.
        fn stored(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.join("images"))
                .into_iter()
                .flatten()
                .flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|name| name != ".lock").collect()
        }
    }

    /// A member of a layer, as its author wrote it: names are not checked.
    struct Entry {
        path: &'static str,
        kind: EntryType,
        link: &'static str,
        contents: &'static [u8],
        mode: u32,
    }

    const FILE: Entry = Entry {
        path: "",
        kind: EntryType::Regular,
        link: "",
        contents: b"",
        mode: 0o644,
    };

    fn file(path: &'static str, contents: &'static [u8]) -> Entry {
        Entry {
            path,
            contents,
            ..FILE
        }
    }

    fn link(kind: EntryType, path: &'static str, link: &'static str) -> Entry {
        Entry {
            path,
            kind,
            link,
            ..FILE
        }
    }

    fn directory(path: &'static str, mode: u32) -> Entry {
        let kind = EntryType::Directory;
        Entry {
            path,
            kind,
            mode,
            ..FILE
        }
    }

    fn header(entry: &Entry, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        let bytes = header.as_gnu_mut().expect("a GNU header");
        bytes.name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        bytes.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(size);
        header.set_mode(entry.mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_cksum();
        header
    }

    fn layer(entries: &[Entry]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in entries {
            let header = header(entry, entry.contents.len() as u64);
            tar.append(&header, entry.contents).expect("appended");
        }
        tar.into_inner().expect("finished")
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("compressed");
        encoder.finish().expect("compressed")
    }

    /// In two frames with a note between them, as archives that can be read from the middle are.
    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let frame =
            |bytes| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
        let (first, second) = bytes.split_at(bytes.len() / 3);
        let note = b"\x50\x2a\x4d\x18\x04\0\0\0note".to_vec();
        [frame(first), note, frame(second)].concat()
    }

    fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes.as_slice())
                .expect("appended");
        }
        tar.into_inner().expect("finished")
    }

    fn config(diff_ids: &[String]) -> Value {
        json!({ "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
                "config": { "Entrypoint": ["/entry"], "Cmd": null, "Env": ["A=1"], "WorkingDir": "/w", "User": "7" } })
    }

    /// What `docker save` writes; layers as they are stored, each with what it is uncompressed.
    fn docker_archive(layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let diff_ids: Vec<String> = layers.iter().map(|(_, plain)| sha256(plain)).collect();
        let paths: Vec<String> = (0..layers.len())
            .map(|index| format!("{index}/layer.tar"))
            .collect();
        let manifest = json!([{ "Config": "config.json", "RepoTags": ["web:v1"], "Layers": paths }]);
        let mut members = vec![
            ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
            (
                "config.json".to_owned(),
                config(&diff_ids).to_string().into_bytes(),
            ),
        ];
        members.extend(
            paths
                .into_iter()
                .zip(layers.iter().map(|(stored, _)| stored.clone())),
        );
        tar_of(&members)
    }

    fn one_layer(plain: Vec<u8>) -> Vec<u8> {
        docker_archive(&[(plain.clone(), plain)])
    }

    /// Every path below a directory: contents of files, targets of links, `/` for directories.
    fn tree(root: &Path) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).expect("readable").flatten() {
                let path = entry.path();
                let kind = entry.file_type().expect("readable");
                let text = if kind.is_dir() {
                    pending.push(path.clone());
                    "/".to_owned()
                } else if kind.is_symlink() {
                    format!("-> {}", fs::read_link(&path).expect("a link").display())
                } else {
                    fs::read_to_string(&path).expect("a file")
                };
                let relative = path.strip_prefix(root).expect("below").display().to_string();
                found.insert(relative, text);
            }
        }
        found
    }

    #[test]
    fn layers_with_whiteouts_become_one_directory() {
        if !may_run("layers_with_whiteouts_become_one_directory") {
            return;
        }
        let scratch = Scratch::new("layers");
        let first = layer(&[
            directory("./", 0o755),
            directory("etc/", 0o700),
            file("etc/gone", b"1"),
            file("etc/kept", b"1"),
            link(EntryType::Symlink, "bin", "usr/bin"),
            link(EntryType::Symlink, "absolute", "/usr"),
            file("usr/bin/x", b"x"),
            link(EntryType::Link, "usr/bin/hard", "/usr/bin/x"),
            file("var/old", b"old"),
            file("var/deep/old", b"old"),
            file("replaced/by-a-file/x", b"x"),
        ]);
        let second = layer(&[
            file("etc/.wh.gone", b""),
            file("etc/.wh.never-there", b""),
            file("var/deep/new", b"new"),
            file("var/.wh..wh..opq", b""),
            file("bin/y", b"y"),
            file("absolute/z", b"z"),
            file("replaced/by-a-file", b"file"),
            file(".wh..wh.plnk", b""),
        ]);
        let third = layer(&[
            Entry {
                mode: 0o4755,
                ..file("usr/bin/x", b"xx")
            },
            link(EntryType::Fifo, "pipe", ""),
            file("same/a", b"a"),
            file(".wh.same", b""),
            file("etc/.wh.kept", b""),
            file("etc/kept", b"3"),
        ]);
        let archive = docker_archive(&[
            (first.clone(), first),
            (gzip(&second), second),
            (zstd(&third), third),
        ]);
        let image = scratch.import(&archive, DEFAULT_LIMIT).expect("a good archive");
        fs::remove_file(image.rootfs.join("pipe")).expect("a pipe");
        let expected = [
            ("absolute", "-> /usr"),
            ("bin", "-> usr/bin"),
            ("etc", "/"),
            ("etc/kept", "3"),
            ("replaced", "/"),
            ("replaced/by-a-file", "file"),
            ("same", "/"),
            ("same/a", "a"),
            ("usr", "/"),
            ("usr/bin", "/"),
            ("usr/bin/hard", "x"),
            ("usr/bin/x", "xx"),
            ("usr/bin/y", "y"),
            ("usr/z", "z"),
            ("var", "/"),
            ("var/deep", "/"),
            ("var/deep/new", "new"),
        ];
        let expected = expected.map(|(path, text)| (path.to_owned(), text.to_owned()));
        assert_eq!(tree(&image.rootfs), BTreeMap::from(expected));
        let program = fs::metadata(image.rootfs.join("usr/bin/x")).expect("there");
        assert_eq!(
            (program.mode() & 0o7777, program.uid(), program.gid()),
            (0o4755, 7, 8)
        );
        let etc = fs::metadata(image.rootfs.join("etc")).expect("there");
        assert_eq!(etc.permissions().mode() & 0o7777, 0o700);
        assert_eq!(image.names, ["docker.io/library/web:v1"]);
        let expected = ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            env: vec!["A=1".to_owned()],
            working_dir: "/w".to_owned(),
            user: "7".to_owned(),
            ..ImageConfig::default()
        };
        assert_eq!(image.config, expected);
    }

    #[test]
    fn hostile_archives_are_refused_and_leave_nothing() {
        if !may_run("hostile_archives_are_refused_and_leave_nothing") {
            return;
        }
        let scratch = Scratch::new("hostile");
        let outside = scratch.0.join("outside");
        fs::write(&outside, "kept").expect("written");
        let plain = |entries: &[Entry]| one_layer(layer(entries));
        let long = Entry {
            kind: EntryType::GNULongName,
            ..FILE
        };
        let mut long_name = tar::Builder::new(Vec::new());
        let name = vec![b'x'; (1 << 20) + 1];
        long_name
            .append(&header(&long, name.len() as u64), name.as_slice())
            .expect("appended");
        let named = |name: String| {
            let mut tar = tar::Builder::new(Vec::new());
            tar.append(&header(&long, name.len() as u64), name.as_bytes())
                .expect("appended");
            [
                tar.into_inner().expect("finished")[..name.len().div_ceil(512) * 512 + 512].to_vec(),
                layer(&[file("a", b"")]),
            ]
            .concat()
        };
        let mut cut = header(&file("cut", b""), 10_000).as_bytes().to_vec();
        cut.extend_from_slice(b"short");
        let mut damaged = layer(&[file("a", b"a")]);
        damaged[0] ^= 1;
        let good = layer(&[file("a", b"a")]);
        let other = layer(&[file("a", b"b")]);
        let zeros = vec![0; 4 << 20];
        let bomb = gzip(&[good.clone(), zeros.clone()].concat());
        let device = |kind| Entry {
            path: "dev/x",
            kind,
            ..FILE
        };
        let many: Vec<Entry> = (0..100).map(|_| file("same", b"")).collect();
        let hard = |target| link(EntryType::Link, "a", target);
        for (what, archive, expected) in [
            (
                "up",
                plain(&[file("a/../../outside", b"x")]),
                "it leads out of the archive",
            ),
            (
                "hard link up",
                plain(&[hard("../outside")]),
                "it leads out of the archive",
            ),
            ("hard link to nothing", plain(&[hard("/proc/self/exe")]), "link"),
            (
                "character device",
                plain(&[device(EntryType::Char)]),
                "dev/x: it is a device",
            ),
            (
                "block device",
                plain(&[device(EntryType::Block)]),
                "dev/x: it is a device",
            ),
            (
                "whiteout of all",
                plain(&[file("a/.wh...", b"")]),
                "it takes away no file",
            ),
            (
                "whiteout of nothing",
                plain(&[file(".wh.", b"")]),
                "it takes away no file",
            ),
            (
                "sparse",
                plain(&[Entry {
                    kind: EntryType::GNUSparse,
                    ..file("a", b"")
                }]),
                "of a kind that no image has",
            ),
            (
                "long name",
                one_layer(named("x/".repeat(2100))),
                "a name of more than 4096 bytes",
            ),
            (
                "file as directory",
                plain(&[file("a", b"x"), file("a/b", b"x")]),
                "open",
            ),
            (
                "link without target on the way",
                plain(&[link(EntryType::Symlink, "l", "/none"), file("l/b", b"x")]),
                "create directory",
            ),
            (
                "endless name",
                one_layer(long_name.into_inner().expect("finished")),
                "a name or attribute of more than",
            ),
            ("cut", one_layer(cut), "the archive ends before it does"),
            ("checksum", one_layer(damaged), "read the archive"),
            (
                "other contents",
                docker_archive(&[(other, good.clone())]),
                "are not what their digest says",
            ),
            ("bomb", docker_archive(&[(bomb, good)]), "larger than any"),
            ("many files", plain(&many), "larger than any"),
            ("no archive", b"nothing of that kind".to_vec(), "the archive"),
            (
                "no manifest",
                tar_of(&[("x".to_owned(), Vec::new())]),
                "neither manifest.json nor index.json",
            ),
            (
                "no documents",
                tar_of(&[("manifest.json".to_owned(), b"{}".to_vec())]),
                "manifest.json: invalid type",
            ),
            (
                "huge document",
                tar_of(&[("manifest.json".to_owned(), vec![b' '; 5 << 20])]),
                "larger than any",
            ),
        ] {
            let limit = Limit {
                bytes: 2 << 20,
                files: 50,
            };
            let error = scratch.import(&archive, limit).expect_err(what);
            let told = format!(
                "{error}: {:?}",
                std::error::Error::source(&error).map(ToString::to_string)
            );
            assert!(told.contains(expected), "{what}: {told}");
            assert_eq!(scratch.stored(), Vec::<String>::new(), "{what}");
        }
        assert_eq!(fs::read_to_string(&outside).expect("there"), "kept");
    }

    #[test]
    fn links_lead_nowhere_but_into_the_image() {
        if !may_run("links_lead_nowhere_but_into_the_image") {
            return;
        }
        let scratch = Scratch::new("links");
        let outside = Path::new("/var/tmp/cwt-images-never");
        let archive = one_layer(layer(&[
            directory("var/tmp/", 0o755),
            link(EntryType::Symlink, "up", "../../../../../var/tmp"),
            link(EntryType::Symlink, "root", "/"),
            file("up/cwt-images-never", b"x"),
            file("root/var/tmp/again", b"x"),
        ]));
        let image = scratch.import(&archive, DEFAULT_LIMIT).expect("within the image");
        assert!(!outside.exists());
        let inside: Vec<String> = tree(&image.rootfs).into_keys().collect();
        assert_eq!(
            inside,
            [
                "root",
                "up",
                "var",
                "var/tmp",
                "var/tmp/again",
                "var/tmp/cwt-images-never"
            ]
        );
    }

    #[test]
    fn an_image_that_was_built_is_read_back_and_is_the_same_each_time() {
        if !may_run("an_image_that_was_built_is_read_back_and_is_the_same_each_time") {
            return;
        }
        let scratch = Scratch::new("build");
        let site = scratch.0.join("site");
        fs::create_dir_all(site.join("deep")).expect("created");
        fs::write(site.join("deep/page"), "page").expect("written");
        // The shim is no static program; that of the built-in image is.
        let built_in = ImageStore::open(&scratch.0.join("built-in")).expect("opens");
        let pause = built_in
            .find("causeway/pause:v1")
            .expect("readable")
            .expect("built in");
        let recipe = Recipe {
            name: "web".to_owned(),
            binary: pause.rootfs.join("pause"),
            files: vec![(site, "/srv/www".to_owned())],
            config: ImageConfig {
                env: vec!["A=1".to_owned()],
                user: "7:8".to_owned(),
                ..ImageConfig::default()
            },
        };
        let (mut archive, mut again) = (Vec::new(), Vec::new());
        let id = build(&recipe, &mut archive).expect("built");
        build(&recipe, &mut again).expect("built");
        assert_eq!(archive, again);
        let image = scratch.import(&archive, DEFAULT_LIMIT).expect("our own archive");
        assert_eq!(
            (image.id.as_str(), image.names.as_slice()),
            (
                id.as_str(),
                ["docker.io/library/web:latest".to_owned()].as_slice()
            )
        );
        assert_eq!(image.config.entrypoint, ["/pause"]);
        assert_eq!(
            (image.config.env.as_slice(), image.config.user.as_str()),
            (["A=1".to_owned()].as_slice(), "7:8")
        );
        assert_eq!(
            fs::read_to_string(image.rootfs.join("srv/www/deep/page"))
                .ok()
                .as_deref(),
            Some("page")
        );
        let program = fs::metadata(image.rootfs.join("pause")).expect("there");
        assert_eq!(program.mode() & 0o7777, 0o755);

        // The same image without docker's manifest: an OCI layout, here compressed as a whole.
        let layout = without(&archive, "manifest.json");
        let packed = scratch.archive(&zstd(&layout)).expect("compressed as a whole");
        let images = packed.images().expect("an OCI layout");
        let found: Vec<_> = images
            .iter()
            .map(|image| (image.id.clone(), image.names.clone()))
            .collect();
        assert_eq!(found, [(id, vec!["docker.io/library/web:latest".to_owned()])]);

        let dynamic = Recipe {
            binary: env!("CARGO_BIN_EXE_causeway-shim").into(),
            ..recipe
        };
        let error = build(&dynamic, Vec::new()).expect_err("it wants a loader");
        assert!(error.to_string().contains("is dynamically linked"), "{error}");
    }

    /// A tar archive without one of its members.
    fn without(archive: &[u8], path: &str) -> Vec<u8> {
        let mut archive = tar::Archive::new(archive);
        let mut members = Vec::new();
        for entry in archive.entries().expect("readable") {
            let mut entry = entry.expect("readable");
            let name = entry.path().expect("a path").display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("readable");
            members.extend((name != path).then_some((name, bytes)));
        }
        tar_of(&members)
    }

    #[test]
    fn an_index_is_followed_to_the_image_of_this_machine() {
        if !may_run("an_index_is_followed_to_the_image_of_this_machine") {
            return;
        }
        let scratch = Scratch::new("index");
        let stored = layer(&[file("a", b"a")]);
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes).trim_start_matches("sha256:"));
        let config = config(&[sha256(&stored)]).to_string().into_bytes();
        let manifest =
            json!({ "config": { "digest": sha256(&config) }, "layers": [{ "digest": sha256(&stored) }] });
        let manifest = manifest.to_string().into_bytes();
        let kind = "application/vnd.oci.image.index.v1+json";
        let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
        let absent = json!({ "digest": sha256(b"absent"), "platform": platform("s390x") });
        let own = json!({ "digest": sha256(&manifest), "platform": platform(architecture()) });
        let archive = |manifests: &Value| {
            let inner = json!({ "manifests": manifests }).to_string().into_bytes();
            let annotations = json!({ "org.opencontainers.image.ref.name": "localhost/a:v2" });
            let outer = json!({ "manifests": [
                { "digest": sha256(&inner), "mediaType": kind, "annotations": annotations }
            ] });
            let members = [config.clone(), manifest.clone(), stored.clone(), inner];
            let mut members: Vec<(String, Vec<u8>)> =
                members.into_iter().map(|one| (blob(&one), one)).collect();
            members.push(("index.json".to_owned(), outer.to_string().into_bytes()));
            tar_of(&members)
        };
        let image = scratch
            .import(&archive(&json!([absent, own])), DEFAULT_LIMIT)
            .expect("found");
        assert_eq!(image.names, ["localhost/a:v2"]);
        assert_eq!(
            tree(&image.rootfs),
            BTreeMap::from([("a".to_owned(), "a".to_owned())])
        );
        let none = scratch.archive(&archive(&json!([absent]))).expect("readable");
        let error = none.images().expect_err("for another machine");
        assert!(error.to_string().contains("it has no image for"), "{error}");
    }

    #[test]
    fn names_move_to_the_newer_image_and_one_in_use_stays() {
        if !may_run("names_move_to_the_newer_image_and_one_in_use_stays") {
            return;
        }
        let scratch = Scratch::new("names");
        let (store, containers) = (scratch.store(), scratch.0.join("containers"));
        let import = |contents: &'static [u8]| {
            let archive = one_layer(layer(&[file("a", contents)]));
            scratch.import(&archive, DEFAULT_LIMIT).expect("a good archive")
        };
        let first = import(b"1");
        let second = import(b"2");
        let names = |id: &str| store.find(id).expect("readable").map(|image| image.names);
        assert_eq!(names(&first.id), Some(vec![]));
        assert_eq!(
            names(&second.id),
            Some(vec!["docker.io/library/web:v1".to_owned()])
        );
        assert_eq!(import(b"2"), second, "the second time changes nothing");

        let request = json!({
            "id": "c", "podNamespace": "default", "podName": "p", "podUid": "u", "container": "main", "attempt": 0,
            "image": "web:v1", "imageId": second.id, "imageRootfs": second.rootfs, "cgroup": "/", "log": "/",
            "terminationLog": "/", "createdAt": "2026-01-01T00:00:00Z",
        });
        fs::create_dir_all(containers.join("c")).expect("created");
        fs::write(containers.join("c/request.json"), request.to_string()).expect("written");
        let error = store.remove("web:v1", &containers).expect_err("in use");
        assert_eq!(
            error.to_string(),
            "image web:v1 is used by container main of pod default/p"
        );
        assert_eq!(
            names(&second.id),
            Some(vec!["docker.io/library/web:v1".to_owned()])
        );
        fs::remove_dir_all(&containers).expect("removed");
        store.remove("web:v1", &containers).expect("not in use");
        store.remove(&first.id, &containers).expect("by its id");
        assert_eq!(scratch.stored(), Vec::<String>::new());
        let error = store.remove("web:v1", &containers).expect_err("gone");
        assert_eq!(error.to_string(), "no image web:v1");
    }
}
