// Unpacks the browser of the npm package into DIR: chrome, what it draws with, and DIR/lib and DIR/fonts.
//
//   node unpack.mjs PACKAGE/bin DIR
import { createReadStream, createWriteStream } from "node:fs";
import { chmod, mkdir } from "node:fs/promises";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const [from, to] = process.argv.slice(2);
const open = (name) => [createReadStream(`${from}/${name}.br`), createBrotliDecompress()];
await mkdir(to, { recursive: true });
await pipeline(...open("chromium"), createWriteStream(`${to}/chrome`));
await chmod(`${to}/chrome`, 0o755);
for (const name of ["al2023.tar", "fonts.tar", "swiftshader.tar"]) {
  const tar = spawn("tar", ["-x", "-C", to], { stdio: ["pipe", "inherit", "inherit"] });
  const ended = once(tar, "close");
  await pipeline(...open(name), tar.stdin);
  const [code] = await ended;
  if (code !== 0) throw new Error(`tar of ${name} ends with ${code}`);
}
