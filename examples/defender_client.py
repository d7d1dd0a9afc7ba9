#!/usr/bin/env python3
"""What a connector for Microsoft Defender for Endpoint does, pointed at Cordon by two URLs.

It uses nothing but the public contract of the Defender machine-action API and Python's standard library:
a token by client credentials, machines found by name and by address, a restriction made, polled and lifted,
a tag, and the list of actions page by page. Nothing in it is Cordon's own.

    CORDON_URL        base URL of the API, instead of https://api.securitycenter.microsoft.com
    CORDON_TOKEN_URL  token URL, instead of https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token
    CORDON_CLIENT_ID, CORDON_CLIENT_SECRET
    CORDON_CA_FILE    the deployment's certificate authority

    defender_client.py MACHINE
"""

import datetime
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

FINAL = {"Succeeded", "Failed", "TimeOut", "Cancelled"}
# The audience that the vendor's own samples name.
RESOURCE = "https://api.securitycenter.microsoft.com"


class ApiError(Exception):
    def __init__(self, status, code, message):
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code = status, code


class Client:
    def __init__(self, base_url, token_url, client_id, client_secret, ca_file):
        self.base_url = base_url.rstrip("/")
        self.token_url, self.client_id, self.client_secret = token_url, client_id, client_secret
        self.context = ssl.create_default_context(cafile=ca_file)
        self.token, self.token_ends = None, 0

    def sign_in(self):
        form = {"client_id": self.client_id, "client_secret": self.client_secret, "grant_type": "client_credentials"}
        if "/v2.0/" in self.token_url:
            form["scope"] = RESOURCE + "/.default"
        else:
            form["resource"] = RESOURCE
        request = urllib.request.Request(self.token_url, urllib.parse.urlencode(form).encode())
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=30) as reply:
                body = json.load(reply)
        except urllib.error.HTTPError as error:
            body = json.load(error)
            raise ApiError(error.code, body["error"], body["error_description"]) from None
        self.token = body["access_token"]
        # v1 says it in a string, v2 in a number.
        self.token_ends = time.time() + int(body["expires_in"]) - 60

    def call(self, method, path, body=None):
        """One call; waits as told when there were too many."""
        url = path if path.startswith("https://") else self.base_url + path
        while True:
            if time.time() >= self.token_ends:
                self.sign_in()
            request = urllib.request.Request(url, method=method)
            request.add_header("Authorization", "Bearer " + self.token)
            if body is not None:
                request.add_header("Content-Type", "application/json")
                request.data = json.dumps(body).encode()
            try:
                with urllib.request.urlopen(request, context=self.context, timeout=60) as reply:
                    return reply.status, json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code == 429:
                    time.sleep(int(error.headers["Retry-After"]))
                    continue
                problem = json.load(error)["error"]
                raise ApiError(error.code, problem["code"], problem["message"]) from None

    def pages(self, path):
        """Every entity of a list, whatever the size of its pages."""
        while path:
            _, page = self.call("GET", path)
            yield from page["value"]
            path = page.get("@odata.nextLink")

    def run_action(self, machine_id, action, comment):
        """Starts an action and waits until it is final, as connectors do: for half a minute."""
        status, entity = self.call("POST", f"/api/machines/{machine_id}/{action}", {"Comment": comment})
        expect(status == 201, f"{action} answered {status}")
        deadline = time.time() + 30
        while entity["status"] not in FINAL:
            expect(time.time() < deadline, f"{action} is {entity['status']} after 30 s")
            time.sleep(0.2)
            _, entity = self.call("GET", f"/api/machineactions/{entity['id']}")
        expect(entity["status"] == "Succeeded", f"{action}: {entity['status']}: {entity['troubleshootInfo']}")
        return entity


def expect(holds, otherwise):
    if not holds:
        sys.exit(f"defender_client: {otherwise}")


def quoted(text):
    return urllib.parse.quote("'" + text.replace("'", "''") + "'")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    settings = ["CORDON_URL", "CORDON_TOKEN_URL", "CORDON_CLIENT_ID", "CORDON_CLIENT_SECRET", "CORDON_CA_FILE"]
    missing = [name for name in settings if not os.environ.get(name)]
    expect(not missing, f"not set: {', '.join(missing)}")
    client = Client(*(os.environ[name] for name in settings))
    name = sys.argv[1]

    # Connectors ask these to see whether they are connected.
    expect(client.call("GET", "/api/alerts?$top=1")[1]["value"] == [], "there are alerts")
    client.call("GET", "/api/exposureScore")

    found = list(client.pages(f"/api/machines?$filter=computerDnsName%20eq%20{quoted(name)}"))
    expect(len(found) == 1, f"{len(found)} machines are named {name}")
    machine = found[0]
    print(f"machine {machine['id']} {machine['computerDnsName']} {machine['healthStatus']}")
    if machine["lastIpAddress"]:
        at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        by_ip = f"/api/machines/findbyip(ip='{machine['lastIpAddress']}',timestamp={at})"
        ids = [entity["id"] for entity in client.pages(by_ip)]
        expect(machine["id"] in ids, f"{machine['lastIpAddress']} finds {ids}")
        print(f"found by {machine['lastIpAddress']}")

    for action, expected in [("Add", True), ("Remove", False)]:
        status, tagged = client.call("POST", f"/api/machines/{machine['id']}/tags", {"Value": "IR-20771", "Action": action})
        expect(status == 200 and ("IR-20771" in tagged["machineTags"]) == expected, f"tags are {tagged['machineTags']}")

    for action in ["restrictCodeExecution", "unrestrictCodeExecution"]:
        entity = client.run_action(machine["id"], action, "IR-20771 tried by an ordinary client")
        print(f"{entity['type']} {entity['status']} {entity['id']}")

    mine = f"/api/machineactions?$filter=machineId%20eq%20{quoted(machine['id'])}&$orderby=creationDateTimeUtc%20desc&$top=2"
    types = [entity["type"] for entity in client.pages(mine)]
    expect(types == ["UnrestrictCodeExecution", "RestrictCodeExecution"], f"the last actions are {types}")

    try:
        client.call("GET", "/api/machineactions/00000000-0000-0000-0000-000000000000")
        sys.exit("defender_client: an unknown action was found")
    except ApiError as error:
        expect((error.status, error.code) == (404, "ResourceNotFound"), f"an unknown action answers {error}")
    print("every step held")


if __name__ == "__main__":
    main()
