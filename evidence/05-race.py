#!/usr/bin/env python3
"""32 clients race `If-None-Match: *` on one key, ROUNDS (1,000) rounds: exactly one winner each, and what is stored is
the winner's. Usage: 05-race.py CLUSTER_JSON"""
import json, os, sys, threading
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

CLIENTS, ROUNDS = 32, int(os.environ.get("ROUNDS", "1000"))
cluster = json.load(open(sys.argv[1]))
hosts = [node["s3"] for node in cluster["nodes"]]


barrier, results = threading.Barrier(CLIENTS + 1), [None] * CLIENTS


def client(number):
    host = hosts[number % len(hosts)]
    s3 = S3(host, cluster["access_key"], cluster["secret_key"], cluster["region"])
    for turn in range(ROUNDS):
        barrier.wait()
        body = b"client %d turn %d" % (number, turn)
        results[number] = s3.request("PUT", f"/race/key-{turn}", body, {"If-None-Match": "*"})[0]
        barrier.wait()


def main():
    s3 = S3(hosts[0], cluster["access_key"], cluster["secret_key"], cluster["region"])
    status, text = s3.request("PUT", "/race")
    assert status == 200, text
    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for turn in range(ROUNDS):
        barrier.wait()
        barrier.wait()
        winners = [number for number, status in enumerate(results) if status == 200]
        losers = [status for status in results if status not in (200, 412, 409)]
        status, body = s3.request("GET", f"/race/key-{turn}")
        if len(winners) != 1 or losers or body != b"client %d turn %d" % (winners[0], turn):
            print(f"DOES NOT HOLD: round {turn}: winners {winners}, other answers {losers}, stored {body!r}")
            sys.exit(1)
    print(f"holds: {ROUNDS} rounds of {CLIENTS} clients, exactly one winner each, and its bytes are stored")


main()
