# @aws-sdk/client-s3 for JavaScript: installed into this run's directory by npm.
command -v npm >/dev/null || exit 77
npm install --silent --no-audit --no-fund --prefix . @aws-sdk/client-s3 @aws-sdk/lib-storage @aws-sdk/s3-request-presigner >/dev/null 2>&1 || exit 77
cat >run.mjs <<'JS'
import { S3Client, CreateBucketCommand, PutObjectCommand, GetObjectCommand, ListObjectsV2Command, CopyObjectCommand,
         DeleteObjectsCommand, DeleteBucketCommand } from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { readFileSync } from "node:fs";
import { randomBytes } from "node:crypto";
import assert from "node:assert";
console.log("@aws-sdk/client-s3", JSON.parse(readFileSync("node_modules/@aws-sdk/client-s3/package.json")).version);
const s3 = new S3Client({ endpoint: process.env.ENDPOINT, region: "us-east-1", forcePathStyle: true });
const Bucket = "sdk-js", send = (Command, input) => s3.send(new Command({ Bucket, ...input }));
await send(CreateBucketCommand);
await send(PutObjectCommand, { Key: "a/ü b", Body: "hello", Metadata: { who: "me" } });
assert.equal(await (await send(GetObjectCommand, { Key: "a/ü b" })).Body.transformToString(), "hello");
const large = randomBytes(20 << 20);
await new Upload({ client: s3, params: { Bucket, Key: "large", Body: large } }).done();
await send(CopyObjectCommand, { Key: "copy", CopySource: `${Bucket}/large` });
const url = await getSignedUrl(s3, new GetObjectCommand({ Bucket, Key: "copy" }));
assert(Buffer.from(await (await fetch(url)).arrayBuffer()).equals(large));
const keys = (await send(ListObjectsV2Command)).Contents.map((item) => item.Key);
assert.deepEqual(keys, ["a/ü b", "copy", "large"]);
assert.equal((await send(DeleteObjectsCommand, { Delete: { Objects: keys.map((Key) => ({ Key })) } })).Deleted.length, 3);
await send(DeleteBucketCommand);
JS
node run.mjs
